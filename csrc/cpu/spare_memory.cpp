#include "spare_memory.h"

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace saerl {
namespace {

constexpr size_t kMostWaste = 4;  // a block so many times too large is left for a larger array

Memory spares[2] = {};
std::atomic_flag busy = ATOMIC_FLAG_INIT;

// Never waits: another thread may hold it, or, in a forked child, may have held it when the fork came.
class Lock {
  public:
    Lock() : held_(!busy.test_and_set(std::memory_order_acquire)) {}
    ~Lock() {
        if (held_) busy.clear(std::memory_order_release);
    }
    bool held() const { return held_; }

  private:
    bool held_;
};

void advise_huge_pages(const Memory& memory) {
#if defined(__linux__)
    constexpr std::uintptr_t kHugePage = 1 << 21;
    const std::uintptr_t begin = reinterpret_cast<std::uintptr_t>(memory.data);
    const std::uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
    const std::uintptr_t last = (begin + memory.bytes) / kHugePage * kHugePage;
    // a wish: where it is not granted the array is slower, and nothing else
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kKeep = false;  // what is freed has to be seen as freed
#else
constexpr bool kKeep = true;
#endif

}  // namespace

Memory take_memory(size_t bytes) {
    if (kKeep) {
        const Lock lock;
        for (Memory& spare : spares) {
            // without the lock a spare is not even to be looked at: it may be written to
            const bool there = lock.held() && spare.data;
            const bool fits = there && spare.bytes >= bytes && spare.bytes / kMostWaste <= bytes;
            if (fits) return std::exchange(spare, Memory{});
        }
    }
    const Memory fresh = {std::malloc(bytes), bytes};
    if (!fresh.data) throw std::bad_alloc();
    advise_huge_pages(fresh);
    return fresh;
}

void give_memory(Memory memory) {
    if (kKeep && memory.bytes >= kLeastKept && memory.bytes <= kMostKept) {
        const Lock lock;
        for (Memory& spare : spares) {
            if (lock.held() && memory.bytes > spare.bytes) std::swap(memory, spare);
        }
    }
    std::free(memory.data);
}

}  // namespace saerl
