// AVX2 body of the loops on dense rows. Compiled with -mavx2 -mfma, called only where both exist.
#if defined(__x86_64__)

#include <immintrin.h>

#include "dense_kernels.h"

namespace saerl {
namespace {

constexpr int64_t kLanes = 8;
constexpr int kGroup = static_cast<int>(DenseKernels::kGroup);
constexpr int kVectors = 2;  // columns of a panel at once: with 6 rows, 12 of the 16 registers hold totals

void accumulate_strip(const float* const* rows, int64_t latents, const float* panel, int64_t width,
                      float* totals) {
    __m256 total[kGroup][kVectors];
    for (int i = 0; i < kGroup; ++i) {
        for (int v = 0; v < kVectors; ++v) total[i][v] = _mm256_loadu_ps(totals + i * width + v * kLanes);
    }
    for (int64_t j = 0; j < latents; ++j) {
        __m256 column[kVectors];
        for (int v = 0; v < kVectors; ++v) column[v] = _mm256_loadu_ps(panel + j * width + v * kLanes);
        for (int i = 0; i < kGroup; ++i) {
            const __m256 value = _mm256_set1_ps(rows[i][j]);
            for (int v = 0; v < kVectors; ++v) {
                total[i][v] = _mm256_fmadd_ps(value, column[v], total[i][v]);
            }
        }
    }
    for (int i = 0; i < kGroup; ++i) {
        for (int v = 0; v < kVectors; ++v) _mm256_storeu_ps(totals + i * width + v * kLanes, total[i][v]);
    }
}

void accumulate(const float* const* rows, int64_t latents, const float* panel, int64_t width, float* totals) {
    for (int64_t c = 0; c < width; c += kVectors * kLanes) {
        accumulate_strip(rows, latents, panel + c, width, totals + c);
    }
}

void look_at(const float* dots, const float* bias, float factor, int64_t first, int64_t width,
             Nearest& nearest) {
    const __m256 times = _mm256_set1_ps(factor);
    __m256 least = _mm256_set1_ps(__builtin_inff());
    __m256 nan = _mm256_setzero_ps();
    __m256i label = _mm256_setzero_si256();
    __m256i place = _mm256_add_epi32(_mm256_set1_epi32(static_cast<int>(first)),
                                     _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    for (int64_t c = 0; c < width; c += kLanes) {
        const __m256 found =
            _mm256_add_ps(_mm256_loadu_ps(bias + c), _mm256_mul_ps(times, _mm256_loadu_ps(dots + c)));
        nan = _mm256_or_ps(nan, _mm256_cmp_ps(found, found, _CMP_UNORD_Q));
        // strictly less: of equal ones the first stays
        const __m256 closer = _mm256_cmp_ps(found, least, _CMP_LT_OQ);
        least = _mm256_blendv_ps(least, found, closer);
        label = _mm256_blendv_epi8(label, place, _mm256_castps_si256(closer));
        place = _mm256_add_epi32(place, _mm256_set1_epi32(kLanes));
    }
    nearest.nan |= _mm256_movemask_ps(nan) != 0;
    float distances[kLanes];
    int32_t labels[kLanes];
    _mm256_storeu_ps(distances, least);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(labels), label);
    float distance = distances[0];
    int32_t nearest_label = labels[0];
    for (int64_t lane = 1; lane < kLanes; ++lane) {
        if (distances[lane] < distance || (distances[lane] == distance && labels[lane] < nearest_label)) {
            distance = distances[lane];
            nearest_label = labels[lane];
        }
    }
    if (distance < nearest.distance) {
        nearest.distance = distance;
        nearest.label = nearest_label;
    }
}

double sum_of_squares(const float* x, int64_t count) {
    __m256d low = _mm256_setzero_pd(), high = _mm256_setzero_pd();
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const __m256d first = _mm256_cvtps_pd(_mm_loadu_ps(x + i));
        const __m256d second = _mm256_cvtps_pd(_mm_loadu_ps(x + i + 4));
        // the product of two floats is exact in float64
        low = _mm256_fmadd_pd(first, first, low);
        high = _mm256_fmadd_pd(second, second, high);
    }
    double lanes[8];
    _mm256_storeu_pd(lanes, low);
    _mm256_storeu_pd(lanes + 4, high);
    for (; i < count; ++i) lanes[0] += static_cast<double>(x[i]) * x[i];
    double sum = 0;
    for (const double lane : lanes) sum += lane;
    return sum;
}

void add(const float* x, int64_t count, double* sums) {
    int64_t j = 0;
    for (; j + 4 <= count; j += 4) {
        const __m256d value = _mm256_cvtps_pd(_mm_loadu_ps(x + j));
        _mm256_storeu_pd(sums + j, _mm256_add_pd(_mm256_loadu_pd(sums + j), value));
    }
    for (; j < count; ++j) sums[j] += x[j];
}

}  // namespace

const DenseKernels kAvx2Dense = {accumulate, look_at, sum_of_squares, add};

}  // namespace saerl

#endif
