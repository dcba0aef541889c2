// Plain C++ body of the screening loops.
#include "screen_kernels.h"

#include <cmath>
#include <limits>

#include "row_loops.h"

namespace saerl {
namespace {

constexpr int64_t kStep = 16;

struct Bounds {
    float likely;
    float upper;
};

inline Bounds bounds(const ProductRow& row, int64_t j) {
    const float middle = static_cast<float>(row.products[j]) * row.step * row.scale[j];
    const float spread = row.spread * row.reach[j] + row.size * row.error[j];
    return {middle - kTrust * spread + row.low[j], middle + spread + row.high[j]};
}

Quantised quantise(const float* x, const Channels& channels, int8_t* q) {
    double largest = 0, squares = 0;
    for (int64_t c = 0; c < channels.width; ++c) {
        const double y = (x[c] - channels.shift[c]) * channels.factor[c];
        largest = std::fabs(y) > largest ? std::fabs(y) : largest;
        squares += y * y;  // not finite where any number is not
    }
    const double norm = std::sqrt(squares);
    const bool fits = largest == 0 ? norm == 0 : norm >= Quantised::kLeast && norm <= Quantised::kMost;
    if (!fits) {
        for (int64_t c = 0; c < channels.width; ++c) q[c] = 0;
        return {std::numeric_limits<float>::quiet_NaN(), 0, 0};
    }
    const float step = static_cast<float>(largest / 127);
    const double inverse = largest == 0 ? 0 : 1 / static_cast<double>(step);
    double errors = 0;
    for (int64_t c = 0; c < channels.width; ++c) {
        const double y = (x[c] - channels.shift[c]) * channels.factor[c];
        const double rounded = std::nearbyint(y * inverse);
        q[c] = static_cast<int8_t>(rounded);
        const double error = y - rounded * step;
        errors += error * error;
    }
    return {step, norm, std::sqrt(errors)};
}

int64_t collect(const ProductRow& row, int64_t begin, int64_t end, float floor, int64_t first_column,
                Found& found) {
    for (int64_t j = begin; j < end; j += kStep) {
        if (full(found)) return j;
        const int64_t stop = j + kStep < end ? j + kStep : end;
        for (int64_t i = j; i < stop; ++i) {
            const Bounds both = bounds(row, i);
            found.likely[found.count] = both.likely;
            found.upper[found.count] = both.upper;
            found.columns[found.count] = static_cast<int32_t>(first_column + i);
            found.count += !(both.upper < floor);
        }
    }
    return end;
}

float float_dot(const float* x, const float* shift, const float* w, int64_t width, const float*) {
    float sums[kFloatDotLanes] = {};
    int64_t c = 0;
    for (; c + kFloatDotLanes <= width; c += kFloatDotLanes) {
        for (int64_t lane = 0; lane < kFloatDotLanes; ++lane) {
            sums[lane] += (x[c + lane] - shift[c + lane]) * w[c + lane];
        }
    }
    for (int64_t lane = 0; c + lane < width; ++lane)
        sums[lane] += (x[c + lane] - shift[c + lane]) * w[c + lane];
    for (int64_t half = kFloatDotLanes / 2; half > 0; half /= 2) {
        for (int64_t lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
    }
    return sums[0];
}

void widen(const float* x, int64_t width, double* wide) {
    for (int64_t c = 0; c < width; ++c) wide[c] = x[c];
}

double dot(const float* x, const double* shift, const double* w, int64_t width, const float*) {
    double sums[kDotLanes] = {};
    int64_t c = 0;
    for (; c + kDotLanes <= width; c += kDotLanes) {
        for (int64_t lane = 0; lane < kDotLanes; ++lane) {
            sums[lane] += (x[c + lane] - shift[c + lane]) * w[c + lane];
        }
    }
    for (int64_t lane = 0; c + lane < width; ++lane)
        sums[lane] += (x[c + lane] - shift[c + lane]) * w[c + lane];
    for (int64_t half = kDotLanes / 2; half > 0; half /= 2) {
        for (int64_t lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
    }
    return sums[0];
}

}  // namespace

const ScreenKernels kPlainScreen = {"plain", quantise, collect, kth_largest, float_dot, widen, dot};

}  // namespace saerl
