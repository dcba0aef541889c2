// The loops of decode without a branch on the data, which compilers turn into vector code by themselves. Every file of
// inner loops includes them and so has its own copy (static, for the reason given in row_kernels.h), compiled for its
// instruction set. The sums are cut into the same lanes everywhere: AVX2 and AVX-512 give the same bits; plain code
// rounds product and sum apart where the machine has no fused multiply-add.
#pragma once

#include <cstdint>

namespace saerl {

static inline float decode_multiply_add(float a, float b, float c) {
#if defined(__FMA__) || defined(__AVX512F__) || defined(__aarch64__)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

// Rows of the table that are added in one pass over `out`: each pass reads and writes it once.
constexpr int64_t kDecodeRows = 4;

// out[c] += values[0] * rows[0][c], then values[1] * rows[1][c] ...
static inline void add_scaled(const float* const* rows,  // IN  [count]
                              const float* values,       // IN  [count]
                              int64_t count,             // 1 .. kDecodeRows
                              int64_t width,
                              float* __restrict out) {  // INOUT [width]
    if (count == kDecodeRows) {
        const float *first = rows[0], *second = rows[1], *third = rows[2], *fourth = rows[3];
        const float a = values[0], b = values[1], c = values[2], d = values[3];
        for (int64_t j = 0; j < width; ++j) {
            float sum = decode_multiply_add(a, first[j], out[j]);
            sum = decode_multiply_add(b, second[j], sum);
            sum = decode_multiply_add(c, third[j], sum);
            out[j] = decode_multiply_add(d, fourth[j], sum);
        }
        return;
    }
    for (int64_t i = 0; i < count; ++i) {
        const float* row = rows[i];
        const float value = values[i];
        for (int64_t j = 0; j < width; ++j) out[j] = decode_multiply_add(value, row[j], out[j]);
    }
}

// x . y in 32 lanes, then lane by lane.
static inline float dot_product(const float* x, const float* y, int64_t width) {
    constexpr int64_t kLanes = 32;
    float lanes[kLanes] = {};
    int64_t j = 0;
    for (; j + kLanes <= width; j += kLanes) {
        for (int64_t lane = 0; lane < kLanes; ++lane) {
            lanes[lane] = decode_multiply_add(x[j + lane], y[j + lane], lanes[lane]);
        }
    }
    for (; j < width; ++j) lanes[0] = decode_multiply_add(x[j], y[j], lanes[0]);
    float sum = 0;
    for (const float lane : lanes) sum += lane;
    return sum;
}

}  // namespace saerl
