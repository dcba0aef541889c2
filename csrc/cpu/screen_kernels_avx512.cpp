// AVX-512 body of the screening loops: 16 float32 or 8 float64 numbers at a time. Compiled with -mavx512f, called
// only where it exists.
#if defined(__x86_64__)

#include <immintrin.h>

#include "row_loops.h"
#include "screen_kernels.h"

namespace saerl {
namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kStep = 4 * kLanes;
constexpr int64_t kWide = 8;  // float64 lanes

inline __mmask16 first_lanes(int64_t lanes) {
    return lanes >= kLanes ? static_cast<__mmask16>(-1) : static_cast<__mmask16>((1u << lanes) - 1);
}

inline __mmask8 first_wide_lanes(int64_t lanes) {
    return lanes >= kWide ? static_cast<__mmask8>(-1) : static_cast<__mmask8>((1u << lanes) - 1);
}

// gcc 12 warns about its own reductions of float64
inline double largest_of(__m512d values) {
    double lanes[kWide];
    _mm512_storeu_pd(lanes, values);
    double largest = lanes[0];
    for (const double lane : lanes) largest = lane > largest ? lane : largest;
    return largest;
}

inline double sum_of(__m512d values) {
    double lanes[kWide];
    _mm512_storeu_pd(lanes, values);
    for (int64_t half = kWide / 2; half > 0; half /= 2) {
        for (int64_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    }
    return lanes[0];
}

inline __m512d smoothed(const float* x, const Channels& channels, int64_t c, __mmask8 inside) {
    const __m512d wide = _mm512_cvtps_pd(_mm512_castps512_ps256(_mm512_maskz_loadu_ps(inside, x + c)));
    const __m512d centred = _mm512_sub_pd(wide, _mm512_maskz_loadu_pd(inside, channels.shift + c));
    return _mm512_mul_pd(centred, _mm512_maskz_loadu_pd(inside, channels.factor + c));
}

Quantised quantise(const float* x, const Channels& channels, int8_t* q) {
    __m512d maxima = _mm512_setzero_pd(), squares = _mm512_setzero_pd();
    for (int64_t c = 0; c < channels.width; c += kWide) {
        const __m512d y = smoothed(x, channels, c, first_wide_lanes(channels.width - c));
        maxima = _mm512_max_pd(_mm512_abs_pd(y), maxima);
        squares = _mm512_fmadd_pd(y, y, squares);  // not finite where any number is not
    }
    const double largest = largest_of(maxima);
    const double norm = __builtin_sqrt(sum_of(squares));
    const bool fits = largest == 0 ? norm == 0 : norm >= Quantised::kLeast && norm <= Quantised::kMost;
    if (!fits) {
        for (int64_t c = 0; c < channels.width; ++c) q[c] = 0;
        return {__builtin_nanf(""), 0, 0};
    }
    const float step = static_cast<float>(largest / 127);
    const __m512d steps = _mm512_set1_pd(step);
    const __m512d inverse = _mm512_set1_pd(largest == 0 ? 0 : 1 / static_cast<double>(step));
    __m512d errors = _mm512_setzero_pd();
    for (int64_t c = 0; c < channels.width; c += kWide) {
        const __mmask8 inside = first_wide_lanes(channels.width - c);
        const __m512d y = smoothed(x, channels, c, inside);
        const __m256i whole = _mm512_cvtpd_epi32(_mm512_mul_pd(y, inverse));
        const __m512d error = _mm512_fnmadd_pd(_mm512_cvtepi32_pd(whole), steps, y);
        errors = _mm512_fmadd_pd(error, error, errors);
        _mm512_mask_cvtepi32_storeu_epi8(q + c, inside, _mm512_castsi256_si512(whole));
    }
    return {step, norm, __builtin_sqrt(sum_of(errors))};
}

struct Bounds {
    __m512 likely;
    __m512 upper;
};

// The bounds of 16 columns, and those of a row as constants.
class RowBounds {
  public:
    explicit RowBounds(const ProductRow& row)
        : row_(row),
          step_(_mm512_set1_ps(row.step)),
          spread_(_mm512_set1_ps(row.spread)),
          size_(_mm512_set1_ps(row.size)) {}

    __attribute__((always_inline)) Bounds at(int64_t j) const {
        return bounds(_mm512_loadu_si512(row_.products + j), _mm512_loadu_ps(row_.scale + j),
                      _mm512_loadu_ps(row_.reach + j), _mm512_loadu_ps(row_.error + j),
                      _mm512_loadu_ps(row_.low + j), _mm512_loadu_ps(row_.high + j));
    }
    // absent lanes hold anything
    __attribute__((always_inline)) Bounds at(int64_t j, __mmask16 inside) const {
        return bounds(
            _mm512_maskz_loadu_epi32(inside, row_.products + j),
            _mm512_maskz_loadu_ps(inside, row_.scale + j), _mm512_maskz_loadu_ps(inside, row_.reach + j),
            _mm512_maskz_loadu_ps(inside, row_.error + j), _mm512_maskz_loadu_ps(inside, row_.low + j),
            _mm512_maskz_loadu_ps(inside, row_.high + j));
    }

  private:
    __attribute__((always_inline)) Bounds bounds(__m512i products, __m512 scale, __m512 reach, __m512 error,
                                                 __m512 low, __m512 high) const {
        const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(products), step_);
        const __m512 spread = _mm512_fmadd_ps(spread_, reach, _mm512_mul_ps(size_, error));
        const __m512 middle = _mm512_mul_ps(product, scale);
        return {_mm512_add_ps(_mm512_fnmadd_ps(_mm512_set1_ps(kTrust), spread, middle), low),
                _mm512_add_ps(_mm512_add_ps(middle, spread), high)};
    }

    const ProductRow& row_;
    __m512 step_, spread_, size_;
};

inline void append(const Bounds& both, __mmask16 reached, int64_t column_of_first, Found& found) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i column = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(column_of_first)), lane);
    // whole vectors are stored and only the first lanes counted: compressing stores are slow on some machines
    _mm512_storeu_ps(found.likely + found.count, _mm512_maskz_compress_ps(reached, both.likely));
    _mm512_storeu_ps(found.upper + found.count, _mm512_maskz_compress_ps(reached, both.upper));
    _mm512_storeu_si512(found.columns + found.count, _mm512_maskz_compress_epi32(reached, column));
    found.count += __builtin_popcount(reached);
}

int64_t collect(const ProductRow& row, int64_t begin, int64_t end, float floor, int64_t first_column,
                Found& found) {
    const RowBounds bounds(row);
    const __m512 floors = _mm512_set1_ps(floor);
    int64_t j = begin;
    for (; j + kStep <= end; j += kStep) {
        if (full(found)) return j;
        Bounds both[4];
        __mmask16 reached[4];
        for (int i = 0; i < 4; ++i) {
            both[i] = bounds.at(j + i * kLanes);
            reached[i] = _mm512_cmp_ps_mask(both[i].upper, floors, _CMP_NLT_UQ);
        }
        if (!(reached[0] | reached[1] | reached[2] | reached[3])) continue;
        for (int i = 0; i < 4; ++i) {
            if (reached[i]) append(both[i], reached[i], first_column + j + i * kLanes, found);
        }
    }
    for (; j < end; j += kLanes) {
        if (full(found)) return j;
        const __mmask16 inside = first_lanes(end - j);
        const Bounds both = bounds.at(j, inside);
        append(both, _mm512_mask_cmp_ps_mask(inside, both.upper, floors, _CMP_NLT_UQ), first_column + j,
               found);
    }
    return end;
}

float float_dot(const float* x, const float* shift, const float* w, int64_t width, const float* next) {
    __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    int64_t c = 0;
    for (; c + kFloatDotLanes <= width; c += kFloatDotLanes) {
        for (int i = 0; i < 4; ++i) {
            const int64_t at = c + i * kLanes;
            _mm_prefetch(reinterpret_cast<const char*>(next + at), _MM_HINT_T0);
            const __m512 centred = _mm512_sub_ps(_mm512_loadu_ps(x + at), _mm512_loadu_ps(shift + at));
            sums[i] = _mm512_fmadd_ps(centred, _mm512_loadu_ps(w + at), sums[i]);
        }
    }
    for (int i = 0; i < 4 && c < width; ++i, c += kLanes) {
        const __mmask16 inside = first_lanes(width - c);
        const __m512 centred =
            _mm512_sub_ps(_mm512_maskz_loadu_ps(inside, x + c), _mm512_maskz_loadu_ps(inside, shift + c));
        sums[i] = _mm512_fmadd_ps(centred, _mm512_maskz_loadu_ps(inside, w + c), sums[i]);
    }
    const __m512 sum = _mm512_add_ps(_mm512_add_ps(sums[0], sums[2]), _mm512_add_ps(sums[1], sums[3]));
    float lanes[kLanes];
    _mm512_storeu_ps(lanes, sum);
    for (int64_t half = kLanes / 2; half > 0; half /= 2) {
        for (int64_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    }
    return lanes[0];
}

void widen(const float* x, int64_t width, double* wide) {
    for (int64_t c = 0; c < width; c += kWide) {
        const __mmask8 inside = first_wide_lanes(width - c);
        const __m512 narrow = _mm512_maskz_loadu_ps(inside, x + c);
        _mm512_mask_storeu_pd(wide + c, inside, _mm512_cvtps_pd(_mm512_castps512_ps256(narrow)));
    }
}

// no fused multiply-add: it would round once where plain C++ rounds twice
inline __m512d add_term(__m512d sum, __m256 x, __m512d shift, __m512d w) {
    return _mm512_add_pd(sum, _mm512_mul_pd(_mm512_sub_pd(_mm512_cvtps_pd(x), shift), w));
}

double dot(const float* x, const double* shift, const double* w, int64_t width, const float* next) {
    __m512d sums[4] = {_mm512_setzero_pd(), _mm512_setzero_pd(), _mm512_setzero_pd(), _mm512_setzero_pd()};
    int64_t c = 0;
    for (; c + kDotLanes <= width; c += kDotLanes) {
        _mm_prefetch(reinterpret_cast<const char*>(next + c), _MM_HINT_T0);
        _mm_prefetch(reinterpret_cast<const char*>(next + c + kDotLanes / 2), _MM_HINT_T0);
        for (int i = 0; i < 4; ++i) {
            const int64_t at = c + i * kWide;
            sums[i] = add_term(sums[i], _mm256_loadu_ps(x + at), _mm512_loadu_pd(shift + at),
                               _mm512_loadu_pd(w + at));
        }
    }
    for (int i = 0; i < 4 && c < width; ++i, c += kWide) {
        const __mmask8 inside = first_wide_lanes(width - c);
        const __m256 narrow = _mm512_castps512_ps256(_mm512_maskz_loadu_ps(inside, x + c));
        const __m512d sum = add_term(sums[i], narrow, _mm512_maskz_loadu_pd(inside, shift + c),
                                     _mm512_maskz_loadu_pd(inside, w + c));
        sums[i] = _mm512_mask_mov_pd(sums[i], inside, sum);
    }
    return sum_of(_mm512_add_pd(_mm512_add_pd(sums[0], sums[2]), _mm512_add_pd(sums[1], sums[3])));
}

}  // namespace

const ScreenKernels kAvx512Screen = {"avx512", quantise, collect, kth_largest, float_dot, widen, dot};

}  // namespace saerl

#endif
