// Two loops without a branch on the data, which compilers turn into vector code by themselves. Every file of
// inner loops includes them and so has its own copy (static, for the reason given in row_kernels.h), compiled
// for its instruction set.
#pragma once

#include <cstdint>
#include <cstring>

namespace saerl {

// Floats as integers of the same order; its own inverse on bits. -0 has to be made +0 before.
static inline int32_t in_float_order(int32_t bits) {
    return bits ^ ((bits >> 31) & 0x7FFFFFFF);
}

// The k-th largest of `values`, bit by bit from the top: the largest t that at least k of them reach.
static inline float kth_largest(const float* values,  // IN  [count], no NaN
                                int64_t count, int64_t k,
                                int32_t* ordered) {  // scratch [count]
    for (int64_t i = 0; i < count; ++i) {
        const float value = values[i] + 0.0f;
        int32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        ordered[i] = in_float_order(bits);
    }
    uint32_t t = 0x80000000u;  // as a signed number the lowest
    for (uint32_t bit = 0x80000000u; bit != 0; bit >>= 1) {
        const int32_t trial = static_cast<int32_t>(t ^ bit);
        int32_t reaching = 0;
        for (int64_t i = 0; i < count; ++i) reaching += ordered[i] >= trial;
        if (reaching >= k) t ^= bit;
    }
    const int32_t bits = in_float_order(static_cast<int32_t>(t));
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

constexpr int64_t kRankStep = 8;

// ranks[i] = how many keys are larger than keys[i]: the place of key i in descending order.
static inline void rank_keys(const uint64_t* keys,  // IN  [count], distinct; count is a multiple of kRankStep
                             int64_t count,
                             int64_t* ranks) {  // OUT [count]
    for (int64_t i = 0; i < count; i += kRankStep) {
        int64_t larger[kRankStep] = {};
        for (int64_t j = 0; j < count; ++j) {
            for (int64_t lane = 0; lane < kRankStep; ++lane) larger[lane] += keys[j] > keys[i + lane];
        }
        for (int64_t lane = 0; lane < kRankStep; ++lane) ranks[i + lane] = larger[lane];
    }
}

}  // namespace saerl
