// The loops on sparse rows without a branch on the data, which compilers turn into vector code by themselves. Every
// file of inner loops includes them and so has its own copy (static, for the reason given in row_kernels.h), compiled
// for its instruction set. The sums are cut into the same lanes everywhere: no instruction set changes their bits.
#pragma once

#include <cstdint>

#include "sparse_kernels.h"

namespace saerl {

static inline float signed_root(float value) {
    return __builtin_copysignf(__builtin_sqrtf(__builtin_fabsf(value)), value);
}

static inline double weighted_squares(const int32_t* columns, const float* values, int64_t count,
                                      const float* weights) {
    constexpr int64_t kLanes = 8;
    double lanes[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        for (int64_t lane = 0; lane < kLanes; ++lane) {
            // the product of two floats is exact in float64
            const double weighted = static_cast<double>(values[i + lane]) * weights[columns[i + lane]];
            lanes[lane] += weighted * weighted;
        }
    }
    for (; i < count; ++i) {
        const double weighted = static_cast<double>(values[i]) * weights[columns[i]];
        lanes[0] += weighted * weighted;
    }
    double sum = 0;
    for (const double lane : lanes) sum += lane;
    return sum;
}

static inline uint32_t glance(const int32_t* columns, const float* values, int64_t count) {
    uint32_t falls = 0, not_finite = 0, zero = 0;
    for (int64_t i = 0; i + 1 < count; ++i) falls |= columns[i + 1] <= columns[i];
    for (int64_t i = 0; i < count; ++i) {
        uint32_t bits;
        __builtin_memcpy(&bits, values + i, sizeof bits);
        not_finite |= (bits & 0x7f800000u) == 0x7f800000u;
        zero |= (bits << 1) == 0;
    }
    return falls * SparseKernels::kFalls | not_finite * SparseKernels::kNotFinite |
           zero * SparseKernels::kZero;
}

}  // namespace saerl
