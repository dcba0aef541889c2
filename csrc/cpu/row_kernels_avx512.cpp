// AVX-512 body of the loops: 16 scores at a time. Compiled with -mavx512f, called only where it exists.
#if defined(__x86_64__)

#include <immintrin.h>

#include "row_kernels.h"
#include "row_loops.h"

namespace saerl {
namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kStep = 4 * kLanes;

inline __m512 score(const ScoreRow& row, int64_t j) {
    __m512 value = _mm512_loadu_ps(row.scores + j);
    if (row.bias) value = _mm512_add_ps(value, _mm512_loadu_ps(row.bias + j));
    if (row.scale) value = _mm512_mul_ps(value, _mm512_loadu_ps(row.scale + j));
    return value;
}

// the last, incomplete vector of a row: absent lanes are -inf, which no group maximum prefers
inline __m512 score_tail(const ScoreRow& row, int64_t j, __mmask16 inside) {
    __m512 value = _mm512_maskz_loadu_ps(inside, row.scores + j);
    if (row.bias) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(inside, row.bias + j));
    if (row.scale) value = _mm512_mul_ps(value, _mm512_maskz_loadu_ps(inside, row.scale + j));
    return _mm512_mask_blend_ps(inside, _mm512_set1_ps(-__builtin_inff()), value);
}

inline __mmask16 first_lanes(int64_t lanes) {
    return static_cast<__mmask16>((1u << lanes) - 1);
}

bool group_maxima(const ScoreRow& row, int64_t width, int64_t group, float* maxima) {
    __mmask16 unordered = 0;
    for (int64_t begin = 0; begin < width; begin += group) {
        const int64_t end = begin + group < width ? begin + group : width;
        __m512 largest = _mm512_set1_ps(-__builtin_inff());
        int64_t j = begin;
        for (; j + 2 * kLanes <= end; j += 2 * kLanes) {
            const __m512 one = score(row, j), two = score(row, j + kLanes);
            unordered |= _mm512_cmp_ps_mask(one, two, _CMP_UNORD_Q);  // either is NaN
            largest = _mm512_max_ps(one, largest);                    // in this order a NaN leaves `largest`
            largest = _mm512_max_ps(two, largest);
        }
        for (; j < end; j += kLanes) {
            const __m512 value = score_tail(row, j, first_lanes(end - j < kLanes ? end - j : kLanes));
            unordered |= _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
            largest = _mm512_max_ps(value, largest);
        }
        *maxima++ = _mm512_reduce_max_ps(largest);
    }
    return unordered != 0;
}

// Append the lanes of `value` whose bit is set in `reached`.
inline void append(__m512 value, __mmask16 reached, int64_t j, Hits& hits) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i column = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(j)), lane);
    // whole vectors are stored and only the first lanes counted: compressing stores are slow on some machines
    _mm512_storeu_ps(hits.values + hits.count, _mm512_maskz_compress_ps(reached, value));
    _mm512_storeu_si512(hits.columns + hits.count, _mm512_maskz_compress_epi32(reached, column));
    hits.count += __builtin_popcount(reached);
}

inline bool has_nan(__m512 value, __mmask16 reached) {
    return _mm512_mask_cmp_ps_mask(reached, value, value, _CMP_UNORD_Q) != 0;
}

int64_t collect(const ScoreRow& row, int64_t begin, int64_t end, float floor, Hits& hits) {
    const __m512 floors = _mm512_set1_ps(floor);
    int64_t j = begin;
    for (; j + kStep <= end; j += kStep) {
        if (full(hits)) return j;
        __m512 value[4];
        __mmask16 reached[4];
        for (int i = 0; i < 4; ++i) {
            value[i] = score(row, j + i * kLanes);
            // "not less than" holds for NaN too, so that the common path needs one comparison
            reached[i] = _mm512_cmp_ps_mask(value[i], floors, _CMP_NLT_UQ);
        }
        if (!(reached[0] | reached[1] | reached[2] | reached[3])) continue;
        for (int i = 0; i < 4; ++i) {
            if (has_nan(value[i], reached[i])) return hits.nan = true, j;
            if (reached[i]) append(value[i], reached[i], j + i * kLanes, hits);
        }
    }
    for (; j < end; j += kLanes) {
        if (full(hits)) return j;
        const __mmask16 inside = first_lanes(end - j < kLanes ? end - j : kLanes);
        const __m512 value = score_tail(row, j, inside);
        const __mmask16 reached = _mm512_mask_cmp_ps_mask(inside, value, floors, _CMP_NLT_UQ);
        if (has_nan(value, reached)) return hits.nan = true, j;
        append(value, reached, j, hits);
    }
    return end;
}

int64_t collect_from_group(const ScoreRow& row, int64_t begin, int64_t end, float floor, Hits& hits) {
    const __m512 floors = _mm512_set1_ps(floor);
    for (int64_t j = begin; j < end; j += kLanes) {
        if (full(hits)) return j;
        const __mmask16 inside = first_lanes(end - j < kLanes ? end - j : kLanes);
        const __m512 value = score_tail(row, j, inside);
        append(value, _mm512_mask_cmp_ps_mask(inside, value, floors, _CMP_GE_OQ), j, hits);
    }
    return end;
}

}  // namespace

const RowKernels kAvx512Kernels = {"avx512",           group_maxima, kth_largest, collect,
                                   collect_from_group, rank_keys,    160};

}  // namespace saerl

#endif
