// Rows of scores as the kernels read them: four columns at a time, bias and scale applied on the way.
//
//     score(i, j) = (scores[i][j] + bias[j]) * scale[j]
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace saerl {

constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr int kCell = 32;          // columns: 128 bytes of scores, the least that is worth a trip to memory
constexpr int kWarpColumns = 128;  // what a warp reads with one 16-byte load per lane
constexpr int kCellLanes = 8;      // lanes that share a cell

struct ScoreRows {
    const float* scores;  // IN [rows, width]
    int64_t width;
    int64_t row_stride;
    const float* bias;   // IN [width] or null
    const float* scale;  // IN [width] or null
    bool aligned;        // every row, bias and scale start at a multiple of 16 bytes

    // Four columns from `first` on. Those beyond the row repeat the first, which leaves maxima as they are.
    __device__ float4 four(const float* from, int64_t first) const {
        if (aligned && first + 4 <= width) return *reinterpret_cast<const float4*>(from + first);
        const int64_t last = width - 1;
        return {from[first], from[min(first + 1, last)], from[min(first + 2, last)],
                from[min(first + 3, last)]};
    }
    __device__ float4 raw(int64_t row, int64_t first) const { return four(scores + row * row_stride, first); }
    __device__ float4 bias_at(int64_t first) const {
        return bias ? four(bias, first) : float4{0.0f, 0.0f, 0.0f, 0.0f};
    }
    __device__ float4 scale_at(int64_t first) const {
        return scale ? four(scale, first) : float4{1.0f, 1.0f, 1.0f, 1.0f};
    }
    __device__ float4 at(int64_t row, int64_t first) const {
        return scored(raw(row, first), bias_at(first), scale_at(first));
    }
    __device__ float one(int64_t row, int64_t j) const {
        const float raw = scores[row * row_stride + j];
        return (raw + (bias ? bias[j] : 0.0f)) * (scale ? scale[j] : 1.0f);
    }
    // adding 0 and multiplying by 1 changes no bit but the sign of -0, which counts for nothing
    __device__ static float4 scored(float4 raw, float4 bias, float4 scale) {
        return {(raw.x + bias.x) * scale.x, (raw.y + bias.y) * scale.y, (raw.z + bias.z) * scale.z,
                (raw.w + bias.w) * scale.w};
    }
};

inline bool starts_at_16_bytes(const void* address) {
    return reinterpret_cast<uintptr_t>(address) % 16 == 0;
}

inline ScoreRows score_rows(const float* scores, int64_t width, int64_t row_stride, const float* bias,
                            const float* scale) {
    const bool aligned = row_stride % 4 == 0 && starts_at_16_bytes(scores) && starts_at_16_bytes(bias) &&
                         starts_at_16_bytes(scale);
    return {scores, width, row_stride, bias, scale, aligned};
}

}  // namespace saerl
