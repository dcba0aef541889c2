// AVX2 body of the loops: 8 scores at a time. Compiled with -mavx2 -mfma, called only where both exist.
#if defined(__x86_64__)

#include <immintrin.h>

#include "row_kernels.h"
#include "row_loops.h"

namespace saerl {
namespace {

constexpr int64_t kLanes = 8;
constexpr int64_t kStep = 4 * kLanes;

inline __m256 score(const ScoreRow& row, int64_t j) {
    __m256 value = _mm256_loadu_ps(row.scores + j);
    if (row.bias) value = _mm256_add_ps(value, _mm256_loadu_ps(row.bias + j));
    if (row.scale) value = _mm256_mul_ps(value, _mm256_loadu_ps(row.scale + j));
    return value;
}

// the last, incomplete vector of a row: absent lanes are -inf, which no group maximum prefers
inline __m256 score_tail(const ScoreRow& row, int64_t j, int64_t lanes) {
    const __m256i inside = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(lanes)),
                                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    __m256 value = _mm256_maskload_ps(row.scores + j, inside);
    if (row.bias) value = _mm256_add_ps(value, _mm256_maskload_ps(row.bias + j, inside));
    if (row.scale) value = _mm256_mul_ps(value, _mm256_maskload_ps(row.scale + j, inside));
    return _mm256_blendv_ps(_mm256_set1_ps(-__builtin_inff()), value, _mm256_castsi256_ps(inside));
}

inline float largest_lane(__m256 v) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

bool group_maxima(const ScoreRow& row, int64_t width, int64_t group, float* maxima) {
    __m256 unordered = _mm256_setzero_ps();
    for (int64_t begin = 0; begin < width; begin += group) {
        const int64_t end = begin + group < width ? begin + group : width;
        __m256 largest = _mm256_set1_ps(-__builtin_inff());
        int64_t j = begin;
        for (; j + kLanes <= end; j += kLanes) {
            const __m256 value = score(row, j);
            unordered = _mm256_or_ps(unordered, _mm256_cmp_ps(value, value, _CMP_UNORD_Q));
            largest = _mm256_max_ps(value, largest);  // in this order a NaN leaves `largest` as it is
        }
        if (j < end) {
            const __m256 value = score_tail(row, j, end - j);
            unordered = _mm256_or_ps(unordered, _mm256_cmp_ps(value, value, _CMP_UNORD_Q));
            largest = _mm256_max_ps(value, largest);
        }
        *maxima++ = largest_lane(largest);
    }
    return _mm256_movemask_ps(unordered) != 0;
}

void strided_maxima(const ScoreRow& row, int64_t width, int64_t groups, float* maxima) {
    for (int64_t first = 0; first < groups; first += 2 * kLanes) {
        __m256 one = _mm256_set1_ps(-__builtin_inff()), two = one;
        for (int64_t j = first; j + 2 * kLanes <= width; j += groups) {
            one = _mm256_max_ps(score(row, j), one);  // in this order a NaN leaves the maximum as it is
            two = _mm256_max_ps(score(row, j + kLanes), two);
        }
        _mm256_storeu_ps(maxima + first, one);
        _mm256_storeu_ps(maxima + first + kLanes, two);
    }
}

// `reached` has one bit per lane that is not below the floor; false when one of them is NaN
inline bool append(__m256 value, unsigned reached, int64_t j, Hits& hits) {
    if (reached & static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(value, value, _CMP_UNORD_Q))))
        return false;
    float lanes[kLanes];
    _mm256_storeu_ps(lanes, value);
    for (; reached; reached &= reached - 1) {
        const int lane = __builtin_ctz(reached);
        hits.values[hits.count] = lanes[lane];
        hits.columns[hits.count++] = static_cast<int32_t>(j + lane);
    }
    return true;
}

int64_t collect(const ScoreRow& row, int64_t begin, int64_t end, float floor, Hits& hits) {
    const __m256 floors = _mm256_set1_ps(floor);
    int64_t j = begin;
    for (; j + kStep <= end; j += kStep) {
        if (full(hits)) return j;
        __m256 value[4];
        unsigned reached[4];
        for (int i = 0; i < 4; ++i) {
            value[i] = score(row, j + i * kLanes);
            // "not less than" holds for NaN too, so that the common path needs one comparison
            reached[i] =
                static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(value[i], floors, _CMP_NLT_UQ)));
        }
        if (!(reached[0] | reached[1] | reached[2] | reached[3])) continue;
        for (int i = 0; i < 4; ++i) {
            if (!append(value[i], reached[i], j + i * kLanes, hits)) return hits.nan = true, j;
        }
    }
    for (; j < end; j += kLanes) {
        if (full(hits)) return j;
        const int64_t lanes = end - j < kLanes ? end - j : kLanes;
        const __m256 value = score_tail(row, j, lanes);
        const unsigned inside = (1u << lanes) - 1;
        const unsigned reached =
            static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(value, floors, _CMP_NLT_UQ)));
        if (!append(value, reached & inside, j, hits)) return hits.nan = true, j;
    }
    return end;
}

}  // namespace

const RowKernels kAvx2Kernels = {"avx2",    group_maxima, strided_maxima, kth_largest, collect,
                                 pack_keys, keep_best,    rank_keys,      160};

}  // namespace saerl

#endif
