// Floats as unsigned numbers of the same order, which is what maxima and ties are compared in.
//
//     rank(a) < rank(b)  when  a < b;   rank(-0) = rank(+0);   0 = nothing;   kSpoilt = NaN, above all numbers
//
#pragma once

#include <cstdint>

namespace saerl {

constexpr unsigned kSpoilt = 0xFFFFFFFFu;

__device__ inline unsigned rank_of(float value) {
    const unsigned bits = __float_as_uint(value + 0.0f);  // -0 becomes +0
    const unsigned rank = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return isnan(value) ? kSpoilt : rank;
}

__device__ inline float value_of(unsigned rank) {
    return __uint_as_float(rank & 0x80000000u ? rank & 0x7FFFFFFFu : ~rank);
}

// The larger key is the larger score, or the lower column of equal ones.
__device__ inline unsigned long long key_of(unsigned rank, int64_t column) {
    return static_cast<unsigned long long>(rank) << 32 | (0xFFFFFFFFu - static_cast<unsigned>(column));
}

__device__ inline unsigned rank_in(unsigned long long key) {
    return static_cast<unsigned>(key >> 32);
}

__device__ inline int32_t column_in(unsigned long long key) {
    return static_cast<int32_t>(0xFFFFFFFFu - static_cast<unsigned>(key));
}

}  // namespace saerl
