// Scores of chosen latents of some rows (screening.h has the equation).
//
// Trick:  latents are taken in slices, whose rows of w stay in the cache while one row of x after the other is
//         multiplied with those it wants of them.
#pragma once

#include <cstdint>
#include <vector>

#include "screening.h"

namespace saerl {

// What is wanted of one row: a number for each of these columns.
template <typename Number>
struct Wanted {
    int64_t row;
    const int32_t* columns;  // IN  [count], ascending
    int64_t count;
    Number* numbers;   // OUT [count]
    int64_t done = 0;  // so many were computed
};

class Rescoring {
  public:
    Rescoring(const Encoder& encoder, const ScreenKernels& kernels);

    // (x - shift).w in float32, within float_dot_error.
    void float_dots(std::vector<Wanted<float>>& rows) const;
    // Scores in float64.
    void scores(std::vector<Wanted<double>>& rows) const;

    // In units of |x - shift| |w|.
    double float_error() const { return float_dot_error(encoder_.width); }
    const float* scale() const { return encoder_.scale; }

  private:
    template <typename Number, typename Body>
    void by_slices(std::vector<Wanted<Number>>& rows, const Body& body) const;
    template <typename Number>
    Chosen chosen(const Wanted<Number>& row, int64_t end) const;
    const float* x_of(int64_t row) const { return encoder_.x + row * encoder_.width; }

    Encoder encoder_;
    const ScreenKernels& kernels_;
    int64_t slice_;  // latents of one
};

}  // namespace saerl
