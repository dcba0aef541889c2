// AVX2 body of the loops on sparse rows. Compiled with -mavx2 -mfma, called only where both exist.
#if defined(__x86_64__)

#include <immintrin.h>

#include "sparse_kernels.h"
#include "sparse_loops.h"

namespace saerl {
namespace {

constexpr int64_t kLanes = 8;

int64_t drain(float* sums, uint8_t* marks, int64_t blocks, int32_t* columns, float* values) {
    int64_t count = 0;
    for (int64_t block = 0; block < blocks; ++block) {
        if (!marks[block]) continue;
        marks[block] = 0;
        const int64_t first = block * SparseKernels::kBlock;
        for (int64_t j = first; j < first + SparseKernels::kBlock; j += kLanes) {
            const __m256 sum = _mm256_loadu_ps(sums + j);
            // "not equal or unordered": NaN stays
            unsigned there = static_cast<unsigned>(
                _mm256_movemask_ps(_mm256_cmp_ps(sum, _mm256_setzero_ps(), _CMP_NEQ_UQ)));
            for (; there; there &= there - 1) {
                const int64_t column = j + __builtin_ctz(there);
                columns[count] = static_cast<int32_t>(column);
                values[count++] = sums[column];
            }
            _mm256_storeu_ps(sums + j, _mm256_setzero_ps());
        }
    }
    return count;
}

bool divide(float* values, int64_t count, float divisor) {
    __m256 zeros = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        const __m256 quotient = _mm256_div_ps(_mm256_loadu_ps(values + i), _mm256_set1_ps(divisor));
        zeros = _mm256_or_ps(zeros, _mm256_cmp_ps(quotient, _mm256_setzero_ps(), _CMP_EQ_OQ));
        _mm256_storeu_ps(values + i, quotient);
    }
    bool zero = _mm256_movemask_ps(zeros) != 0;
    for (; i < count; ++i) {
        values[i] /= divisor;
        zero |= values[i] == 0;
    }
    return zero;
}

// the totals of one panel stay in registers over all entries
template <int kVectors>
int64_t accumulate_panel(const int32_t* columns, const float* values, int64_t begin, int64_t end,
                         int32_t limit, const float* table, int64_t stride, float* totals) {
    __m256 total[kVectors];
    for (int i = 0; i < kVectors; ++i) total[i] = _mm256_loadu_ps(totals + i * kLanes);
    int64_t e = begin;
    for (; e < end && columns[e] < limit; ++e) {
        const float* row = table + columns[e] * stride;
        const __m256 value = _mm256_set1_ps(values[e]);
        for (int i = 0; i < kVectors; ++i) {
            total[i] = _mm256_fmadd_ps(value, _mm256_loadu_ps(row + i * kLanes), total[i]);
        }
    }
    for (int i = 0; i < kVectors; ++i) _mm256_storeu_ps(totals + i * kLanes, total[i]);
    return e;
}

int64_t accumulate(const int32_t* columns, const float* values, int64_t begin, int64_t end, int32_t limit,
                   const float* table, int64_t stride, int64_t width, float* totals) {
    switch (width / SparseKernels::kPanelStep) {
        case 1:
            return accumulate_panel<2>(columns, values, begin, end, limit, table, stride, totals);
        case 2:
            return accumulate_panel<4>(columns, values, begin, end, limit, table, stride, totals);
        case 3:
            return accumulate_panel<6>(columns, values, begin, end, limit, table, stride, totals);
        default:
            return accumulate_panel<8>(columns, values, begin, end, limit, table, stride, totals);
    }
}

void root(const float* values, int64_t count, float* roots) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        const __m256 value = _mm256_loadu_ps(values + i);
        const __m256 size = _mm256_sqrt_ps(_mm256_andnot_ps(sign, value));
        _mm256_storeu_ps(roots + i, _mm256_or_ps(size, _mm256_and_ps(sign, value)));
    }
    for (; i < count; ++i) roots[i] = signed_root(values[i]);
}

}  // namespace

const SparseKernels kAvx2Sparse = {drain, divide, accumulate, root, weighted_squares, glance};

}  // namespace saerl

#endif
