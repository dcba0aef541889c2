// Plain C++ body of the loops on dense rows.
#include "dense_kernels.h"

namespace saerl {
namespace {

constexpr int64_t kStrip = 16;

inline float multiply_add(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

// the totals of a strip of one row stay in registers over all latents
void accumulate(const float* const* rows, int64_t latents, const float* panel, int64_t width, float* totals) {
    for (int64_t i = 0; i < DenseKernels::kGroup; ++i) {
        for (int64_t c = 0; c < width; c += kStrip) {
            float* total = totals + i * width + c;
            float sums[kStrip];
            for (int64_t lane = 0; lane < kStrip; ++lane) sums[lane] = total[lane];
            for (int64_t j = 0; j < latents; ++j) {
                const float value = rows[i][j];
                const float* column = panel + j * width + c;
                for (int64_t lane = 0; lane < kStrip; ++lane) {
                    sums[lane] = multiply_add(value, column[lane], sums[lane]);
                }
            }
            for (int64_t lane = 0; lane < kStrip; ++lane) total[lane] = sums[lane];
        }
    }
}

void look_at(const float* dots, const float* bias, float factor, int64_t first, int64_t width,
             Nearest& nearest) {
    for (int64_t c = 0; c < width; ++c) {
        const float found = bias[c] + factor * dots[c];
        nearest.nan |= found != found;
        if (found < nearest.distance) {
            nearest.distance = found;
            nearest.label = static_cast<int32_t>(first + c);
        }
    }
}

double sum_of_squares(const float* x, int64_t count) {
    double lanes[8] = {};
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        for (int64_t lane = 0; lane < 8; ++lane) {
            const double value = x[i + lane];
            lanes[lane] += value * value;
        }
    }
    for (; i < count; ++i) lanes[0] += static_cast<double>(x[i]) * x[i];
    double sum = 0;
    for (const double lane : lanes) sum += lane;
    return sum;
}

void add(const float* x, int64_t count, double* sums) {
    for (int64_t j = 0; j < count; ++j) sums[j] += x[j];
}

}  // namespace

const DenseKernels kPlainDense = {accumulate, look_at, sum_of_squares, add};

}  // namespace saerl
