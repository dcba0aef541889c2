// Loops without a branch on the data, which compilers turn into vector code by themselves. Every file of
// inner loops includes them and so has its own copy (static, for the reason given in row_kernels.h), compiled
// for its instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "row_kernels.h"

namespace saerl {

// Floats as integers of the same order; its own inverse on bits. -0 has to be made +0 before.
static inline int32_t in_float_order(int32_t bits) {
    return bits ^ ((bits >> 31) & 0x7FFFFFFF);
}

constexpr uint32_t kSign = 0x80000000u;  // from signed to unsigned order and back

#if defined(__AVX512F__)

// These two by hand: counting the bits of masks spares adding up lanes, and no number is left over at the end.
static inline __mmask16 reaching_among(const int32_t* ordered, int64_t count, int32_t floor,
                                       __m512i* values) {
    const __mmask16 inside = static_cast<__mmask16>(count >= 16 ? 0xFFFF : (1 << count) - 1);
    *values = _mm512_maskz_loadu_epi32(inside, ordered);
    return _mm512_mask_cmpge_epi32_mask(inside, *values, _mm512_set1_epi32(floor));
}

static inline int64_t count_reaching(const int32_t* ordered, int64_t count, int32_t floor) {
    int64_t reaching = 0;
    for (int64_t i = 0; i < count; i += 16) {
        __m512i values;
        reaching += __builtin_popcount(reaching_among(ordered + i, count - i, floor, &values));
    }
    return reaching;
}

static inline int32_t least_reaching(const int32_t* ordered, int64_t count, int32_t floor) {
    __m512i least = _mm512_set1_epi32(INT32_MAX);
    for (int64_t i = 0; i < count; i += 16) {
        __m512i values;
        const __mmask16 reaching = reaching_among(ordered + i, count - i, floor, &values);
        least = _mm512_mask_min_epi32(least, reaching, least, values);
    }
    return _mm512_reduce_min_epi32(least);
}

#else

static inline int64_t count_reaching(const int32_t* ordered, int64_t count, int32_t floor) {
    int32_t reaching = 0;
    for (int64_t i = 0; i < count; ++i) reaching += ordered[i] >= floor;
    return reaching;
}

static inline int32_t least_reaching(const int32_t* ordered, int64_t count, int32_t floor) {
    int32_t least = INT32_MAX;
    for (int64_t i = 0; i < count; ++i) {
        if (ordered[i] >= floor && ordered[i] < least) least = ordered[i];
    }
    return least;
}

#endif

// The k-th largest of integers between `least` and `most`, bit by bit: the largest t that at least k of them reach. The
// bits that all of them have in common need no trial, nor those that are left once exactly k reach t.
static inline int32_t kth_largest_integer(const int32_t* numbers, int64_t count, int64_t k, int32_t least,
                                          int32_t most) {
    const uint32_t differing = static_cast<uint32_t>(least) ^ static_cast<uint32_t>(most);
    uint32_t bit = kSign;
    while (bit > differing) bit >>= 1;
    int64_t reaching = count;
    uint32_t t = (static_cast<uint32_t>(most) ^ kSign) & ~(2 * bit - 1);
    for (; bit != 0 && reaching != k; bit >>= 1) {
        const int64_t passing = count_reaching(numbers, count, static_cast<int32_t>((t | bit) ^ kSign));
        if (passing < k) continue;
        t |= bit;
        reaching = passing;
    }
    return least_reaching(numbers, count, static_cast<int32_t>(t ^ kSign));
}

// The k-th largest of `values`.
static inline float kth_largest(const float* values,  // IN  [count], no NaN
                                int64_t count, int64_t k,
                                int32_t* ordered) {  // scratch [count]
    int32_t least = INT32_MAX, most = INT32_MIN;
    for (int64_t i = 0; i < count; ++i) {
        const float value = values[i] + 0.0f;
        int32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        ordered[i] = in_float_order(bits);
        least = ordered[i] < least ? ordered[i] : least;
        most = ordered[i] > most ? ordered[i] : most;
    }
    const int32_t bits = in_float_order(kth_largest_integer(ordered, count, k, least, most));
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// A score and its column as one number: the larger key is the larger score, or the lower column of equal ones.
static inline void pack_keys(const Hits& hits, int64_t first_column, uint64_t* __restrict keys) {
    const uint32_t first = 0xFFFFFFFFu - static_cast<uint32_t>(first_column);
    const int64_t count = hits.count;
    for (int64_t i = 0; i < count; ++i) {
        const float value = hits.values[i] + 0.0f;  // -0 becomes +0
        int32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        const uint32_t order = static_cast<uint32_t>(in_float_order(bits)) ^ kSign;
        keys[i] = static_cast<uint64_t>(order) << 32 | (first - static_cast<uint32_t>(hits.columns[i]));
    }
}

#if defined(__AVX512F__)

static inline int64_t move_best(uint64_t* keys, int64_t count, int32_t kth, int64_t ties) {
    const __m512i least = _mm512_set1_epi64(static_cast<int64_t>(static_cast<uint32_t>(kth) ^ kSign));
    int64_t kept = 0;
    for (int64_t i = 0; i < count; i += 8) {
        const __mmask8 inside = static_cast<__mmask8>(count - i >= 8 ? 0xFF : (1 << (count - i)) - 1);
        const __m512i some = _mm512_maskz_loadu_epi64(inside, keys + i);
        const __m512i scores = _mm512_srli_epi64(some, 32);
        unsigned better = _mm512_mask_cmpgt_epu64_mask(inside, scores, least);
        for (unsigned tied = _mm512_mask_cmpeq_epu64_mask(inside, scores, least); tied != 0 && ties > 0;
             --ties) {
            better |= tied & -tied;
            tied &= tied - 1;
        }
        const int moved = __builtin_popcount(better);
        // what is written was read before
        _mm512_mask_storeu_epi64(keys + kept, static_cast<__mmask8>((1 << moved) - 1),
                                 _mm512_maskz_compress_epi64(static_cast<__mmask8>(better), some));
        kept += moved;
    }
    return kept;
}

#else

static inline int64_t move_best(uint64_t* keys, int64_t count, int32_t kth, int64_t ties) {
    const uint32_t least = static_cast<uint32_t>(kth) ^ kSign;
    int64_t kept = 0;
    for (int64_t i = 0; i < count; ++i) {
        const uint32_t score = static_cast<uint32_t>(keys[i] >> 32);
        const bool tied = score == least && ties > 0;
        ties -= tied;
        keys[kept] = keys[i];
        kept += tied || score > least;
    }
    return kept;
}

#endif

// Leaves the k best of keys whose columns ascend, in their order. Returns the upper half of the least of them.
static inline uint32_t keep_best(uint64_t* keys, int64_t count, int64_t k,  // k <= count
                                 int32_t* ordered) {                        // scratch [count]
    int32_t least = INT32_MAX, most = INT32_MIN;
    for (int64_t i = 0; i < count; ++i) {
        ordered[i] = static_cast<int32_t>(static_cast<uint32_t>(keys[i] >> 32) ^ kSign);
        least = ordered[i] < least ? ordered[i] : least;
        most = ordered[i] > most ? ordered[i] : most;
    }
    const int32_t kth = kth_largest_integer(ordered, count, k, least, most);
    // of scores as large as the k-th the first columns are the best
    const int64_t above = kth == INT32_MAX ? 0 : count_reaching(ordered, count, kth + 1);
    move_best(keys, count, kth, k - above);
    return static_cast<uint32_t>(kth) ^ kSign;
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

// The place of score i in descending order, ties to the lower i: how many are larger, or as large and before it.
static inline void rank_scores(const double* scores,  // IN  [count], no NaN; count is a multiple of kRankStep
                               int64_t count,
                               int64_t* ranks) {  // OUT [count]
    for (int64_t i = 0; i < count; i += kRankStep) {
        int64_t before[kRankStep] = {};
        for (int64_t j = 0; j < i; ++j) {
            for (int64_t lane = 0; lane < kRankStep; ++lane) before[lane] += scores[j] >= scores[i + lane];
        }
        for (int64_t j = i; j < i + kRankStep; ++j) {
            for (int64_t lane = 0; lane < kRankStep; ++lane) {
                const bool tied = scores[j] == scores[i + lane] && j < i + lane;
                before[lane] += tied || scores[j] > scores[i + lane];
            }
        }
        for (int64_t j = i + kRankStep; j < count; ++j) {
            for (int64_t lane = 0; lane < kRankStep; ++lane) before[lane] += scores[j] > scores[i + lane];
        }
        for (int64_t lane = 0; lane < kRankStep; ++lane) ranks[i + lane] = before[lane];
    }
}

}  // namespace saerl
