// Loops of int8 screening that compilers turn into vector code by themselves (row_loops.h).
#pragma once

#include <cstdint>

#include "screen_kernels.h"

namespace saerl {

// One of the two where the other is not a number.
static inline float number_or(float value, float other) {
    return value == value ? value : other;
}

static inline Agreement bound_by_dots(const FloatDots& d, Found& found) {
    constexpr float kInfinity = __builtin_huge_valf();
    float* __restrict lowers = found.lower;
    float* __restrict uppers = found.upper;
    int32_t outside = 0;
    float worst = 0;
    for (int64_t i = 0; i < found.count; ++i) {
        const int32_t j = found.columns[i];
        const float score = d.scale ? d.scale[j] * d.dots[i] : d.dots[i];
        const float error = d.reach[j] * d.size;
        const float lower = number_or(score + d.low[j] - error, -kInfinity);
        const float upper = number_or(score + d.high[j] + error, kInfinity);
        const float spread = (uppers[i] - lowers[i]) / (1 + d.trust);
        const float middle = uppers[i] - spread;
        outside += (upper < middle - spread) | (lower > uppers[i]);
        const float above = lower - middle, below = middle - upper;
        // infinite or not a number where the row or the latent has no bounds
        const float distance = (above > below ? above : below) / spread;
        worst = distance > worst && distance <= kInfinity / 2 ? distance : worst;
        lowers[i] = lower;
        uppers[i] = upper;
    }
    return {outside, worst};
}

}  // namespace saerl
