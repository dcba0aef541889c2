// Numbers in memory of their own, reserved for the worst case and cut to what was used.
//
// Reserved memory costs nothing until it is written to, so a result whose size is known only afterwards needs
// neither a second pass nor a copy. Large arrays ask for huge pages: the system clears fresh memory page by
// page, and 4 KB at a time that takes longer than the computation.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

#include "spare_memory.h"

namespace saerl {

template <typename T>
class Array {
  public:
    Array() : Array(0) {}
    // Room for `size` numbers, not set to anything.
    explicit Array(int64_t size) : memory_(take_memory(bytes(size))), size_(size) {}
    ~Array() { give_memory(memory_); }
    Array(Array&& other) noexcept
        : memory_(std::exchange(other.memory_, Memory{})), size_(std::exchange(other.size_, 0)) {}
    Array& operator=(Array&& other) noexcept {
        std::swap(memory_, other.memory_);
        std::swap(size_, other.size_);
        return *this;
    }

    // Keeps the first `size` numbers. What a small array has behind them is given back, and no pointer into it stays
    // valid; behind a large one it stays reserved.
    void cut(int64_t size) {
        size_ = size;
        if (memory_.bytes >= kLeastKept) return;
        void* kept = std::realloc(memory_.data, bytes(size));
        if (!kept) throw std::bad_alloc();
        memory_ = {kept, bytes(size)};
    }

    T* data() const { return static_cast<T*>(memory_.data); }
    int64_t size() const { return size_; }

  private:
    // never 0: of no bytes malloc may give none
    static size_t bytes(int64_t size) { return static_cast<size_t>(size + 1) * sizeof(T); }

    Memory memory_;
    int64_t size_;
};

}  // namespace saerl
