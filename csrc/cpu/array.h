// Numbers in memory of their own, reserved for the worst case and cut to what was used.
//
// Reserved memory costs nothing until it is written to, so a result whose size is known only afterwards needs
// neither a second pass nor a copy. Large arrays ask for huge pages: the system clears fresh memory page by
// page, and 4 KB at a time that takes longer than the computation.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace saerl {

template <typename T>
class Array {
  public:
    Array() : Array(0) {}
    // Room for `size` numbers, not set to anything.
    explicit Array(int64_t size) : data_(static_cast<T*>(std::malloc(bytes(size)))), size_(size) {
        if (!data_) throw std::bad_alloc();
        advise_huge_pages();
    }

    // Keeps the first `size` numbers and gives the rest back. No pointer to them stays valid.
    void cut(int64_t size) {
        T* kept = static_cast<T*>(std::realloc(data_.get(), bytes(size)));
        if (!kept) throw std::bad_alloc();
        static_cast<void>(data_.release());
        data_.reset(kept);
        size_ = size;
    }

    T* data() const { return data_.get(); }
    int64_t size() const { return size_; }

  private:
    struct Free {
        void operator()(T* data) const { std::free(data); }
    };

    // never 0: of no bytes malloc may give none
    static size_t bytes(int64_t size) { return static_cast<size_t>(size + 1) * sizeof(T); }

    void advise_huge_pages() {
#if defined(__linux__)
        constexpr std::uintptr_t kHugePage = 1 << 21;
        const std::uintptr_t begin = reinterpret_cast<std::uintptr_t>(data_.get());
        const std::uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
        const std::uintptr_t last = (begin + bytes(size_)) / kHugePage * kHugePage;
        // a wish: where it is not granted the array is slower, and nothing else
        if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
    }

    std::unique_ptr<T, Free> data_;
    int64_t size_;
};

}  // namespace saerl
