// Zeros whose first begins a line of the cache, so that no vector of 64 bytes lies across two lines.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace saerl {

template <typename T>
class Lines {
  public:
    Lines() : Lines(0) {}
    explicit Lines(int64_t size) : lines_(static_cast<size_t>((size + kPerLine - 1) / kPerLine)) {}

    T* data() { return reinterpret_cast<T*>(lines_.data()); }
    const T* data() const { return reinterpret_cast<const T*>(lines_.data()); }
    T& operator[](int64_t i) { return data()[i]; }

  private:
    static constexpr int64_t kPerLine = 64 / sizeof(T);
    struct alignas(64) Line {
        T numbers[kPerLine];
    };
    std::vector<Line> lines_;
};

}  // namespace saerl
