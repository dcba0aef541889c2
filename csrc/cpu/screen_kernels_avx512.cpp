// AVX-512 body of the screening loops: 16 float32 or 8 float64 numbers at a time. Compiled with -mavx512f, called
// only where it exists.
#if defined(__x86_64__)

#include <immintrin.h>

#include "row_loops.h"
#include "screen_kernels.h"
#include "screen_loops.h"

namespace saerl {
namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kStep = 4 * kLanes;
constexpr int64_t kWide = 8;  // float64 lanes
constexpr __mmask16 kAll = static_cast<__mmask16>(-1);

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

// Sums in the lanes whose number lacks a bit, differences in the others; `swapped` is `y` with such lanes exchanged.
inline __m512d with_neighbours(__m512d y, __m512d swapped, __mmask8 has_bit) {
    return _mm512_mask_sub_pd(_mm512_add_pd(y, swapped), has_bit, swapped, y);
}

// A Hadamard matrix over its root, of 64 numbers: sums and differences of pairs, at every power of two.
inline void rotate(__m512d y[kWide]) {
    for (int64_t i = 0; i < kWide; ++i) {
        y[i] = with_neighbours(y[i], _mm512_permute_pd(y[i], 0x55), 0xAA);
        y[i] = with_neighbours(y[i], _mm512_permutex_pd(y[i], 0x4E), 0xCC);
        y[i] = with_neighbours(y[i], _mm512_shuffle_f64x2(y[i], y[i], 0x4E), 0xF0);
    }
    for (int64_t distance = 1; distance < kWide; distance *= 2) {
        for (int64_t i = 0; i < kWide; ++i) {
            if (i & distance) continue;
            const __m512d one = y[i], other = y[i + distance];
            y[i] = _mm512_add_pd(one, other);
            y[i + distance] = _mm512_sub_pd(one, other);
        }
    }
    for (int64_t i = 0; i < kWide; ++i) y[i] = _mm512_mul_pd(y[i], _mm512_set1_pd(0.125));
}

Quantised quantise(const float* x, const Channels& channels, double* y, int8_t* q) {
    const int64_t rotated = rotated_width(channels.width);
    __m512d maxima = _mm512_setzero_pd(), squares = _mm512_setzero_pd();
    for (int64_t first = 0; first < rotated; first += kRotated) {
        __m512d z[kWide];
        for (int64_t i = 0; i < kWide; ++i) {
            const int64_t c = first + i * kWide;
            z[i] = c < channels.width ? smoothed(x, channels, c, first_wide_lanes(channels.width - c))
                                      : _mm512_setzero_pd();
        }
        rotate(z);
        for (int64_t i = 0; i < kWide; ++i) {
            maxima = _mm512_max_pd(_mm512_abs_pd(z[i]), maxima);
            squares = _mm512_fmadd_pd(z[i], z[i], squares);  // not finite where any number is not
            _mm512_storeu_pd(y + first + i * kWide, z[i]);
        }
    }
    const double largest = largest_of(maxima);
    const double norm = __builtin_sqrt(sum_of(squares));
    const bool fits = largest == 0 ? norm == 0 : norm >= Quantised::kLeast && norm <= Quantised::kMost;
    if (!fits) {
        for (int64_t c = 0; c < rotated; ++c) q[c] = 0;
        return {__builtin_nanf(""), 0, 0};
    }
    const float step = static_cast<float>(largest / 127);
    const __m512d steps = _mm512_set1_pd(step);
    const __m512d inverse = _mm512_set1_pd(largest == 0 ? 0 : 1 / static_cast<double>(step));
    __m512d errors = _mm512_setzero_pd();
    for (int64_t c = 0; c < rotated; c += kWide) {
        const __m512d z = _mm512_loadu_pd(y + c);
        const __m256i whole = _mm512_cvtpd_epi32(_mm512_mul_pd(z, inverse));
        const __m512d error = _mm512_fnmadd_pd(_mm512_cvtepi32_pd(whole), steps, z);
        errors = _mm512_fmadd_pd(error, error, errors);
        _mm512_mask_cvtepi32_storeu_epi8(q + c, 0xFF, _mm512_castsi256_si512(whole));
    }
    return {step, norm, __builtin_sqrt(sum_of(errors))};
}

// The bounds of 16 columns by their products, and those of a row as constants.
class RowBounds {
  public:
    explicit RowBounds(const ProductRow& row)
        : row_(row),
          step_(_mm512_set1_ps(row.step)),
          spread_(_mm512_set1_ps(row.spread)),
          size_(_mm512_set1_ps(row.size)),
          trust_(_mm512_set1_ps(row.trust)) {}

    // absent lanes hold anything
    __attribute__((always_inline)) __m512 upper(int64_t j, __mmask16 inside) const {
        const __m512 high = _mm512_maskz_loadu_ps(inside, row_.high + j);
        return _mm512_add_ps(_mm512_add_ps(middle(j, inside), spread(j, inside)), high);
    }
    __attribute__((always_inline)) __m512 lower(int64_t j, __mmask16 inside) const {
        const __m512 low = _mm512_maskz_loadu_ps(inside, row_.low + j);
        return _mm512_add_ps(_mm512_fnmadd_ps(trust_, spread(j, inside), middle(j, inside)), low);
    }

  private:
    __attribute__((always_inline)) __m512 middle(int64_t j, __mmask16 inside) const {
        const __m512 product = _mm512_cvtepi32_ps(_mm512_maskz_loadu_epi32(inside, row_.products + j));
        return _mm512_mul_ps(_mm512_mul_ps(product, step_), _mm512_maskz_loadu_ps(inside, row_.scale + j));
    }
    __attribute__((always_inline)) __m512 spread(int64_t j, __mmask16 inside) const {
        const __m512 reach = _mm512_maskz_loadu_ps(inside, row_.reach + j);
        const __m512 error = _mm512_maskz_loadu_ps(inside, row_.error + j);
        return _mm512_fmadd_ps(spread_, reach, _mm512_mul_ps(size_, error));
    }

    const ProductRow& row_;
    __m512 step_, spread_, size_, trust_;
};

void likely_maxima(const ProductRow& row, int64_t width, int64_t groups, float* maxima) {
    const RowBounds bounds(row);
    for (int64_t g = 0; g < groups; ++g) maxima[g] = -__builtin_huge_valf();
    for (int64_t first = 0; first < width; first += groups) {
        for (int64_t g = 0; g < groups && first + g + kLanes <= width; g += kLanes) {
            const __m512 lower = bounds.lower(first + g, kAll);
            _mm512_storeu_ps(maxima + g, _mm512_max_ps(_mm512_loadu_ps(maxima + g), lower));
        }
    }
}

// Whole vectors are stored and only the first lanes counted: compressing stores are slow on some machines.
// Returns the new count.
inline int64_t append(__mmask16 kept, __m512 lower, __m512 upper, __m512i columns, const Found& found,
                      int64_t count) {
    _mm512_storeu_ps(found.lower + count, _mm512_maskz_compress_ps(kept, lower));
    _mm512_storeu_ps(found.upper + count, _mm512_maskz_compress_ps(kept, upper));
    _mm512_storeu_si512(found.columns + count, _mm512_maskz_compress_epi32(kept, columns));
    return count + __builtin_popcount(kept);
}

inline __m512i columns_from(int64_t first) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(first)), lane);
}

int64_t collect(const ProductRow& row, int64_t begin, int64_t end, float floor, int64_t first_column,
                Found& found) {
    const RowBounds bounds(row);
    const __m512 floors = _mm512_set1_ps(floor);
    const Found to = found;
    const int64_t most = to.room - Found::kWidestStep;
    int64_t count = to.count;
    int64_t j = begin;
    for (; j + kStep <= end && count <= most; j += kStep) {
        __m512 upper[4];
        __mmask16 reached[4];
        for (int i = 0; i < 4; ++i) {
            upper[i] = bounds.upper(j + i * kLanes, kAll);
            reached[i] = _mm512_cmp_ps_mask(upper[i], floors, _CMP_NLT_UQ);
        }
        if (!(reached[0] | reached[1] | reached[2] | reached[3])) continue;
        for (int i = 0; i < 4; ++i) {
            const int64_t at = j + i * kLanes;
            if (!reached[i]) continue;
            const __m512i columns = columns_from(first_column + at);
            count = append(reached[i], bounds.lower(at, kAll), upper[i], columns, to, count);
        }
    }
    for (; j + kStep > end && j < end && count <= most; j += kLanes) {
        const __mmask16 inside = first_lanes(end - j);
        const __m512 upper = bounds.upper(j, inside);
        const __mmask16 reached = _mm512_mask_cmp_ps_mask(inside, upper, floors, _CMP_NLT_UQ);
        const __m512i columns = columns_from(first_column + j);
        count = append(reached, bounds.lower(j, inside), upper, columns, to, count);
    }
    found.count = count;
    return j < end ? j : end;
}

void drop_below(float floor, Found& found) {
    const Found from = found;
    const __m512 floors = _mm512_set1_ps(floor);
    int64_t count = 0;
    for (int64_t i = 0; i < from.count; i += kLanes) {
        const __mmask16 inside = first_lanes(from.count - i);
        const __m512 lower = _mm512_maskz_loadu_ps(inside, from.lower + i);
        const __m512 upper = _mm512_maskz_loadu_ps(inside, from.upper + i);
        const __m512i columns = _mm512_maskz_loadu_epi32(inside, from.columns + i);
        const __mmask16 reached = _mm512_mask_cmp_ps_mask(inside, upper, floors, _CMP_NLT_UQ);
        count = append(reached, lower, upper, columns, from, count);
    }
    found.count = count;
}

void centre(const float* x, const float* shift, int64_t width, float* y) {
    for (int64_t c = 0; c < width; c += kLanes) {
        const __mmask16 inside = first_lanes(width - c);
        const __m512 both = _mm512_maskz_loadu_ps(inside, shift + c);
        _mm512_storeu_ps(y + c, _mm512_sub_ps(_mm512_maskz_loadu_ps(inside, x + c), both));
    }
}

void widen(const float* x, const double* shift, int64_t width, double* y) {
    for (int64_t c = 0; c < width; c += kWide) {
        const __mmask8 inside = first_wide_lanes(width - c);
        const __m512d wide = _mm512_cvtps_pd(_mm512_castps512_ps256(_mm512_maskz_loadu_ps(inside, x + c)));
        _mm512_mask_storeu_pd(y + c, inside, _mm512_sub_pd(wide, _mm512_maskz_loadu_pd(inside, shift + c)));
    }
}

// The sums over the lanes of four vectors.
inline __m128 four_sums(const __m512 v[4]) {
    const __m512 one = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
    const __m512 other = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
    const __m512d ones = _mm512_castps_pd(one), others = _mm512_castps_pd(other);
    const __m512 quarters = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ones, others)),
                                          _mm512_castpd_ps(_mm512_unpackhi_pd(ones, others)));
    const __m512 halves = _mm512_add_ps(quarters, _mm512_shuffle_f32x4(quarters, quarters, 0x4E));
    return _mm_add_ps(_mm512_castps512_ps128(halves), _mm512_extractf32x4_ps(halves, 1));
}

// Four rows of w at a time, so that y is read once for all of them.
void float_dots(const Chosen& chosen, const float* y, float* dots) {
    const int64_t last = chosen.count - 1;
    const auto row_of = [&](int64_t i) {
        return chosen.w + chosen.columns[i < last ? i : last] * chosen.width;
    };
    for (int64_t i = 0; i <= last; i += 4) {
        const float* w[4];
        __m512 sums[4];
        for (int64_t n = 0; n < 4; ++n) {
            w[n] = row_of(i + n);
            sums[n] = _mm512_setzero_ps();
        }
        int64_t c = 0;
        for (; c + kLanes <= chosen.width; c += kLanes) {
            const __m512 x = _mm512_loadu_ps(y + c);
            for (int n = 0; n < 4; ++n) {
                sums[n] = _mm512_fmadd_ps(x, _mm512_loadu_ps(w[n] + c), sums[n]);
            }
        }
        const __mmask16 inside = first_lanes(chosen.width - c);
        const __m512 x = _mm512_maskz_loadu_ps(inside, y + c);
        for (int n = 0; n < 4; ++n) {
            sums[n] = _mm512_fmadd_ps(x, _mm512_maskz_loadu_ps(inside, w[n] + c), sums[n]);
        }
        float four[4];
        _mm_storeu_ps(four, four_sums(sums));
        for (int64_t n = 0; n < 4 && i + n <= last; ++n) dots[i + n] = four[n];
    }
}

// no fused multiply-add: it would round once where plain C++ rounds twice
inline __m512d add_term(__m512d sum, __m512d y, __m256 w) {
    return _mm512_add_pd(sum, _mm512_mul_pd(y, _mm512_cvtps_pd(w)));
}

double dot(const double* y, const float* w, int64_t width, const float* next) {
    __m512d sums[4] = {_mm512_setzero_pd(), _mm512_setzero_pd(), _mm512_setzero_pd(), _mm512_setzero_pd()};
    int64_t c = 0;
    for (; c + kDotLanes <= width; c += kDotLanes) {
        _mm_prefetch(reinterpret_cast<const char*>(next + c), _MM_HINT_T0);
        _mm_prefetch(reinterpret_cast<const char*>(next + c + kDotLanes / 2), _MM_HINT_T0);
        for (int i = 0; i < 4; ++i) {
            const int64_t at = c + i * kWide;
            sums[i] = add_term(sums[i], _mm512_loadu_pd(y + at), _mm256_loadu_ps(w + at));
        }
    }
    for (int i = 0; i < 4 && c < width; ++i, c += kWide) {
        const __mmask8 inside = first_wide_lanes(width - c);
        const __m256 narrow = _mm512_castps512_ps256(_mm512_maskz_loadu_ps(inside, w + c));
        const __m512d sum = add_term(sums[i], _mm512_maskz_loadu_pd(inside, y + c), narrow);
        sums[i] = _mm512_mask_mov_pd(sums[i], inside, sum);
    }
    return sum_of(_mm512_add_pd(_mm512_add_pd(sums[0], sums[2]), _mm512_add_pd(sums[1], sums[3])));
}

void dots(const Chosen& chosen, const double* y, double* dots) {
    const auto row_of = [&](int64_t i) { return chosen.w + chosen.columns[i] * chosen.width; };
    for (int64_t i = 0; i < chosen.count; ++i) {
        const int64_t next = i + 1 < chosen.count ? i + 1 : i;
        dots[i] = dot(y, row_of(i), chosen.width, row_of(next));
    }
}

}  // namespace

const ScreenKernels kAvx512Screen = {"avx512", quantise,   likely_maxima, collect, drop_below, kth_largest,
                                     centre,   float_dots, bound_by_dots, widen,   dots,       rank_scores};

}  // namespace saerl

#endif
