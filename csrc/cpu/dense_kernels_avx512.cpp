// AVX-512 body of the loops on dense rows. Compiled with -mavx512f, called only where it exists.
#if defined(__x86_64__)

#include <immintrin.h>

#include "dense_kernels.h"

namespace saerl {
namespace {

constexpr int64_t kLanes = 16;
constexpr int kGroup = static_cast<int>(DenseKernels::kGroup);

// kGroup x kVectors totals stay in registers over all latents
template <int kVectors>
void accumulate_group(const float* const* rows, int64_t latents, const float* panel, float* totals) {
    __m512 total[kGroup][kVectors];
    for (int i = 0; i < kGroup; ++i) {
        for (int v = 0; v < kVectors; ++v) {
            total[i][v] = _mm512_loadu_ps(totals + (i * kVectors + v) * kLanes);
        }
    }
    for (int64_t j = 0; j < latents; ++j) {
        __m512 column[kVectors];
        for (int v = 0; v < kVectors; ++v) column[v] = _mm512_loadu_ps(panel + (j * kVectors + v) * kLanes);
        for (int i = 0; i < kGroup; ++i) {
            const __m512 value = _mm512_set1_ps(rows[i][j]);
            for (int v = 0; v < kVectors; ++v) {
                total[i][v] = _mm512_fmadd_ps(value, column[v], total[i][v]);
            }
        }
    }
    for (int i = 0; i < kGroup; ++i) {
        for (int v = 0; v < kVectors; ++v) {
            _mm512_storeu_ps(totals + (i * kVectors + v) * kLanes, total[i][v]);
        }
    }
}

void accumulate(const float* const* rows, int64_t latents, const float* panel, int64_t width, float* totals) {
    switch (width / kLanes) {
        case 1:
            return accumulate_group<1>(rows, latents, panel, totals);
        case 2:
            return accumulate_group<2>(rows, latents, panel, totals);
        case 3:
            return accumulate_group<3>(rows, latents, panel, totals);
        default:
            return accumulate_group<4>(rows, latents, panel, totals);
    }
}

void look_at(const float* dots, const float* bias, float factor, int64_t first, int64_t width,
             Nearest& nearest) {
    const __m512 times = _mm512_set1_ps(factor);
    __m512 least = _mm512_set1_ps(__builtin_inff());
    __m512i label = _mm512_setzero_si512();
    __m512i place = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(first)),
                                     _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    __mmask16 nan = 0;
    for (int64_t c = 0; c < width; c += kLanes) {
        const __m512 found =
            _mm512_add_ps(_mm512_loadu_ps(bias + c), _mm512_mul_ps(times, _mm512_loadu_ps(dots + c)));
        nan |= _mm512_cmp_ps_mask(found, found, _CMP_UNORD_Q);
        // strictly less: of equal ones the first stays
        const __mmask16 closer = _mm512_cmp_ps_mask(found, least, _CMP_LT_OQ);
        least = _mm512_mask_mov_ps(least, closer, found);
        label = _mm512_mask_mov_epi32(label, closer, place);
        place = _mm512_add_epi32(place, _mm512_set1_epi32(kLanes));
    }
    nearest.nan |= nan != 0;
    const float distance = _mm512_reduce_min_ps(least);
    if (distance < nearest.distance) {
        nearest.distance = distance;
        const __mmask16 equal = _mm512_cmp_ps_mask(least, _mm512_set1_ps(distance), _CMP_EQ_OQ);
        nearest.label = _mm512_mask_reduce_min_epi32(equal, label);
    }
}

double sum_of_squares(const float* x, int64_t count) {
    __m512d sums = _mm512_setzero_pd();
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const __m512d value = _mm512_cvtps_pd(_mm256_loadu_ps(x + i));
        // the product of two floats is exact in float64
        sums = _mm512_fmadd_pd(value, value, sums);
    }
    double lanes[8];
    _mm512_storeu_pd(lanes, sums);
    for (; i < count; ++i) lanes[0] += static_cast<double>(x[i]) * x[i];
    double sum = 0;
    for (const double lane : lanes) sum += lane;
    return sum;
}

void add(const float* x, int64_t count, double* sums) {
    int64_t j = 0;
    for (; j + 8 <= count; j += 8) {
        const __m512d value = _mm512_cvtps_pd(_mm256_loadu_ps(x + j));
        _mm512_storeu_pd(sums + j, _mm512_add_pd(_mm512_loadu_pd(sums + j), value));
    }
    for (; j < count; ++j) sums[j] += x[j];
}

}  // namespace

const DenseKernels kAvx512Dense = {accumulate, look_at, sum_of_squares, add};

}  // namespace saerl

#endif
