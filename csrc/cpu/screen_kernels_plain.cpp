// Plain C++ body of the screening loops.
#include "screen_kernels.h"

#include <cmath>
#include <limits>

#include "row_loops.h"
#include "screen_loops.h"

namespace saerl {
namespace {

constexpr int64_t kStep = 16;

// A Hadamard matrix over its root, of 64 numbers: sums and differences of pairs, at every power of two.
void rotate(double* y) {
    for (int64_t distance = 1; distance < kRotated; distance *= 2) {
        for (int64_t c = 0; c < kRotated; ++c) {
            if (c & distance) continue;
            const double one = y[c], other = y[c + distance];
            y[c] = one + other;
            y[c + distance] = one - other;
        }
    }
    for (int64_t c = 0; c < kRotated; ++c) y[c] *= 0.125;
}

Quantised quantise(const float* x, const Channels& channels, double* y, int8_t* q) {
    const int64_t width = channels.width, rotated = rotated_width(width);
    for (int64_t c = 0; c < rotated; ++c) {
        y[c] = c < width ? (x[c] - channels.shift[c]) * channels.factor[c] : 0;
    }
    double largest = 0, squares = 0;
    for (int64_t first = 0; first < rotated; first += kRotated) {
        rotate(y + first);
        for (int64_t c = first; c < first + kRotated; ++c) {
            largest = std::fabs(y[c]) > largest ? std::fabs(y[c]) : largest;
            squares += y[c] * y[c];  // not finite where any number is not
        }
    }
    const double norm = std::sqrt(squares);
    const bool fits = largest == 0 ? norm == 0 : norm >= Quantised::kLeast && norm <= Quantised::kMost;
    if (!fits) {
        for (int64_t c = 0; c < rotated; ++c) q[c] = 0;
        return {std::numeric_limits<float>::quiet_NaN(), 0, 0};
    }
    const float step = static_cast<float>(largest / 127);
    const double inverse = largest == 0 ? 0 : 1 / static_cast<double>(step);
    double errors = 0;
    for (int64_t c = 0; c < rotated; ++c) {
        const double rounded = std::nearbyint(y[c] * inverse);
        q[c] = static_cast<int8_t>(rounded);
        const double error = y[c] - rounded * step;
        errors += error * error;
    }
    return {step, norm, std::sqrt(errors)};
}

struct Bounds {
    float lower;
    float upper;
};

inline Bounds bounds(const ProductRow& row, int64_t j) {
    const float middle = static_cast<float>(row.products[j]) * row.step * row.scale[j];
    const float spread = row.spread * row.reach[j] + row.size * row.error[j];
    return {middle - row.trust * spread + row.low[j], middle + spread + row.high[j]};
}

void likely_maxima(const ProductRow& row, int64_t width, int64_t groups, float* maxima) {
    for (int64_t g = 0; g < groups; ++g) maxima[g] = -std::numeric_limits<float>::infinity();
    for (int64_t j = 0; j < width; ++j) {
        const float lower = bounds(row, j).lower;
        maxima[j % groups] = lower > maxima[j % groups] ? lower : maxima[j % groups];
    }
}

int64_t collect(const ProductRow& row, int64_t begin, int64_t end, float floor, int64_t first_column,
                Found& found) {
    for (int64_t j = begin; j < end; j += kStep) {
        if (full(found)) return j;
        const int64_t stop = j + kStep < end ? j + kStep : end;
        for (int64_t i = j; i < stop; ++i) {
            const Bounds both = bounds(row, i);
            found.lower[found.count] = both.lower;
            found.upper[found.count] = both.upper;
            found.columns[found.count] = static_cast<int32_t>(first_column + i);
            found.count += !(both.upper < floor);
        }
    }
    return end;
}

void drop_below(float floor, Found& found) {
    int64_t kept = 0;
    for (int64_t i = 0; i < found.count; ++i) {
        const float upper = found.upper[i];
        found.lower[kept] = found.lower[i];
        found.upper[kept] = upper;
        found.columns[kept] = found.columns[i];
        kept += !(upper < floor);
    }
    found.count = kept;
}

void centre(const float* x, const float* shift, int64_t width, float* y) {
    for (int64_t c = 0; c < width; ++c) y[c] = x[c] - shift[c];
    for (int64_t c = width; c % kFloatDotLanes != 0; ++c) y[c] = 0;
}

void widen(const float* x, const double* shift, int64_t width, double* y) {
    for (int64_t c = 0; c < width; ++c) y[c] = x[c] - shift[c];
}

// The sum of y[c] * w[c]: number c goes to partial sum c % kLanes.
template <typename Number, int64_t kLanes>
Number dot(const Number* y, const float* w, int64_t width) {
    Number sums[kLanes] = {};
    int64_t c = 0;
    for (; c + kLanes <= width; c += kLanes) {
        for (int64_t lane = 0; lane < kLanes; ++lane) sums[lane] += y[c + lane] * w[c + lane];
    }
    for (int64_t lane = 0; c + lane < width; ++lane) sums[lane] += y[c + lane] * w[c + lane];
    for (int64_t half = kLanes / 2; half > 0; half /= 2) {
        for (int64_t lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
    }
    return sums[0];
}

void float_dots(const Chosen& chosen, const float* y, float* dots) {
    for (int64_t i = 0; i < chosen.count; ++i) {
        const float* w = chosen.w + chosen.columns[i] * chosen.width;
        dots[i] = dot<float, kFloatDotLanes>(y, w, chosen.width);
    }
}

void dots(const Chosen& chosen, const double* y, double* dots) {
    for (int64_t i = 0; i < chosen.count; ++i) {
        const float* w = chosen.w + chosen.columns[i] * chosen.width;
        dots[i] = dot<double, kDotLanes>(y, w, chosen.width);
    }
}

}  // namespace

const ScreenKernels kPlainScreen = {"plain", quantise,   likely_maxima, collect, drop_below, kth_largest,
                                    centre,  float_dots, bound_by_dots, widen,   dots,       rank_scores};

}  // namespace saerl
