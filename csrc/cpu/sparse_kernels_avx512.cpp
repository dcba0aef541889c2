// AVX-512 body of the loops on sparse rows. Compiled with -mavx512f, called only where it exists.
#if defined(__x86_64__)

#include <immintrin.h>

#include "sparse_kernels.h"
#include "sparse_loops.h"

namespace saerl {
namespace {

constexpr int64_t kLanes = 16;

int64_t drain(float* sums, uint8_t* marks, int64_t blocks, int32_t* columns, float* values) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    int64_t count = 0;
    for (int64_t block = 0; block < blocks; ++block) {
        if (!marks[block]) continue;
        marks[block] = 0;
        const int64_t first = block * SparseKernels::kBlock;
        for (int64_t j = first; j < first + SparseKernels::kBlock; j += kLanes) {
            const __m512 sum = _mm512_loadu_ps(sums + j);
            // "not equal or unordered": NaN stays
            const __mmask16 there = _mm512_cmp_ps_mask(sum, _mm512_setzero_ps(), _CMP_NEQ_UQ);
            const __m512i column = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(j)), lane);
            const __m512 kept = _mm512_maskz_compress_ps(there, sum);
            const __m512i places = _mm512_maskz_compress_epi32(there, column);
            _mm512_storeu_ps(sums + j, _mm512_setzero_ps());
            // half a vector is nearly always enough, and crosses a cache line half as often
            _mm256_storeu_ps(values + count, reinterpret_cast<const __m256&>(kept));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(columns + count),
                                reinterpret_cast<const __m256i&>(places));
            const int found = __builtin_popcount(there);
            if (__builtin_expect(found > kLanes / 2, 0)) {
                _mm512_storeu_ps(values + count, kept);
                _mm512_storeu_si512(columns + count, places);
            }
            count += found;
        }
    }
    return count;
}

bool divide(float* values, int64_t count, float divisor) {
    bool zero = false;
    for (int64_t i = 0; i < count; i += kLanes) {
        const int64_t left = count - i;
        const __mmask16 inside = static_cast<__mmask16>(left < kLanes ? (1u << left) - 1 : 0xffff);
        const __m512 quotient =
            _mm512_div_ps(_mm512_maskz_loadu_ps(inside, values + i), _mm512_set1_ps(divisor));
        zero |= _mm512_mask_cmp_ps_mask(inside, quotient, _mm512_setzero_ps(), _CMP_EQ_OQ) != 0;
        _mm512_mask_storeu_ps(values + i, inside, quotient);
    }
    return zero;
}

// the totals of one panel stay in registers over all entries
template <int kVectors>
int64_t accumulate_panel(const int32_t* columns, const float* values, int64_t begin, int64_t end,
                         int32_t limit, const float* table, int64_t stride, float* totals) {
    __m512 total[kVectors];
    for (int i = 0; i < kVectors; ++i) total[i] = _mm512_loadu_ps(totals + i * kLanes);
    int64_t e = begin;
    for (; e < end && columns[e] < limit; ++e) {
        const float* row = table + columns[e] * stride;
        const __m512 value = _mm512_set1_ps(values[e]);
        for (int i = 0; i < kVectors; ++i) {
            total[i] = _mm512_fmadd_ps(value, _mm512_loadu_ps(row + i * kLanes), total[i]);
        }
    }
    for (int i = 0; i < kVectors; ++i) _mm512_storeu_ps(totals + i * kLanes, total[i]);
    return e;
}

int64_t accumulate(const int32_t* columns, const float* values, int64_t begin, int64_t end, int32_t limit,
                   const float* table, int64_t stride, int64_t width, float* totals) {
    switch (width / kLanes) {
        case 1:
            return accumulate_panel<1>(columns, values, begin, end, limit, table, stride, totals);
        case 2:
            return accumulate_panel<2>(columns, values, begin, end, limit, table, stride, totals);
        case 3:
            return accumulate_panel<3>(columns, values, begin, end, limit, table, stride, totals);
        default:
            return accumulate_panel<4>(columns, values, begin, end, limit, table, stride, totals);
    }
}

void root(const float* values, int64_t count, float* roots) {
    const __m512i sign = _mm512_set1_epi32(INT32_MIN);
    for (int64_t i = 0; i < count; i += kLanes) {
        const int64_t left = count - i;
        const __mmask16 inside = static_cast<__mmask16>(left < kLanes ? (1u << left) - 1 : 0xffff);
        const __m512 value = _mm512_maskz_loadu_ps(inside, values + i);
        const __m512i signs = _mm512_and_epi32(sign, _mm512_castps_si512(value));
        const __m512i size = _mm512_castps_si512(_mm512_sqrt_ps(_mm512_abs_ps(value)));
        _mm512_mask_storeu_ps(roots + i, inside, _mm512_castsi512_ps(_mm512_or_epi32(size, signs)));
    }
}

}  // namespace

const SparseKernels kAvx512Sparse = {drain, divide, accumulate, root, weighted_squares, glance};

}  // namespace saerl

#endif
