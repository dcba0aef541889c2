// AVX-512 body of the loops: 16 scores at a time. Compiled with -mavx512f, called only where it exists.
#if defined(__x86_64__)

#include <immintrin.h>

#include "row_kernels.h"
#include "row_loops.h"

namespace saerl {
namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kStep = 4 * kLanes;
constexpr int64_t kMasks = 32;

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

// Up to `kVectors` maxima at a time stay in registers.
template <int kVectors>
inline void maxima_of(const ScoreRow& row, int64_t width, int64_t first, int64_t groups, float* maxima) {
    __m512 largest[kVectors];
    for (__m512& v : largest) v = _mm512_set1_ps(-__builtin_inff());
    for (int64_t j = first; j + kVectors * kLanes <= width; j += groups) {
        for (int i = 0; i < kVectors; ++i) {
            // in this order a NaN leaves the maximum as it is
            largest[i] = _mm512_max_ps(score(row, j + i * kLanes), largest[i]);
        }
    }
    for (int i = 0; i < kVectors; ++i) _mm512_storeu_ps(maxima + first + i * kLanes, largest[i]);
}

void strided_maxima(const ScoreRow& row, int64_t width, int64_t groups, float* maxima) {
    int64_t first = 0;
    for (; first + kStep <= groups; first += kStep) maxima_of<4>(row, width, first, groups, maxima);
    for (; first < groups; first += kLanes) maxima_of<1>(row, width, first, groups, maxima);
}

// Append the lanes of `value` whose bit is set in `reached`. Returns the new count.
inline int64_t append(__m512 value, __mmask16 reached, int64_t j, Hits& hits, int64_t count) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i column = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(j)), lane);
    // whole vectors are stored and only the first lanes counted: compressing stores are slow on some machines
    _mm512_storeu_ps(hits.values + count, _mm512_maskz_compress_ps(reached, value));
    _mm512_storeu_si512(hits.columns + count, _mm512_maskz_compress_epi32(reached, column));
    return count + __builtin_popcount(reached);
}

inline bool has_nan(__m512 value, __mmask16 reached) {
    return _mm512_mask_cmp_ps_mask(reached, value, value, _CMP_UNORD_Q) != 0;
}

// First the masks of 512 columns, without a branch, then the vectors in which a bit is set: a branch for each vector would
// be mispredicted too often.
int64_t collect(const ScoreRow& given, int64_t begin, int64_t end, float floor, Hits& hits) {
    const ScoreRow row = given;  // as far as the compiler knows, hits may lie there
    const __m512 floors = _mm512_set1_ps(floor);
    int64_t count = hits.count;
    for (int64_t first = begin; first < end; first += kMasks * kLanes) {
        const int64_t whole = (end - first) / kLanes < kMasks ? (end - first) / kLanes : kMasks;
        __mmask16 reached[kMasks];
        uint32_t any = 0;
        for (int64_t i = 0; i < whole; ++i) {
            // "not less than" holds for NaN too
            reached[i] = _mm512_cmp_ps_mask(score(row, first + i * kLanes), floors, _CMP_NLT_UQ);
            any |= static_cast<uint32_t>(reached[i] != 0) << i;
        }
        if (whole < kMasks && first + whole * kLanes < end) {
            const int64_t j = first + whole * kLanes;
            const __mmask16 inside = first_lanes(end - j);
            const __m512 value = score_tail(row, j, inside);
            reached[whole] = _mm512_mask_cmp_ps_mask(inside, value, floors, _CMP_NLT_UQ);
            any |= static_cast<uint32_t>(reached[whole] != 0) << whole;
        }
        for (; any != 0; any &= any - 1) {
            const int64_t i = __builtin_ctz(any), j = first + i * kLanes;
            const __m512 value = score_tail(row, j, reached[i]);
            hits.nan = has_nan(value, reached[i]);
            if (hits.nan || count > Hits::kRoom - kLanes) return hits.count = count, j;
            count = append(value, reached[i], j, hits, count);
        }
    }
    hits.count = count;
    return end;
}

}  // namespace

const RowKernels kAvx512Kernels = {"avx512",  group_maxima, strided_maxima, kth_largest, collect,
                                   pack_keys, keep_best,    rank_keys,      160};

}  // namespace saerl

#endif
