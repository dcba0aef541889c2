// The k largest scores of each row, exactly: four rows per block of four warps.
//
//     values[i], columns[i] = topk_j score(i, j),   score(i, j) = (scores[i][j] + bias[j]) * scale[j]
//
// Floor:  reading each score once: rows * width * 4 bytes; 16,384 rows of 49,152 are 3.2 GB, 0.75 ms at the
//         4.3 TB/s of an H200. Where the maxima are given, reading them and k groups: 4 (width / group + k
//         group) bytes a row, 14 kB in place of 196 kB at k = 64 and groups of 32.
// Trick:  the k groups with the largest maxima hold the k best scores (select_row.cuh), so one sweep for the
//         maxima of groups of 32 columns leaves k * 128 bytes to read again: 4 % of the row at k = 64.
//         The sweep takes four rows at once: they share each read of bias and scale, which would else cost as
//         much L2 traffic as the scores, and give each thread eight 16-byte loads under way. Then each warp
//         finishes one row by itself, without barriers.
//
// Every step has a fixed order, and the one atomic is an integer maximum: the same input gives the same bits.
// Descending; ties to the lower column; -0 counts as +0. A row with a NaN gives NaN values and columns 0..k-1.
//
// Not timed yet: docs/measured.md.
#include "launchers.h"
#include "on_device.h"
#include "select_row.cuh"

namespace {

using namespace saerl;

constexpr int kRows = 4;  // one per warp
constexpr int kThreads = 32 * kRows;
constexpr int kMaxGroups = SAERL_TOPK_SELECT_MAX_GROUPS;

struct Shape {
    int group_bits;
    int groups;
    int k;
    int places;
};

// The warps' places side by side; 8-byte keys first, so that all is aligned.
__device__ RowPlace place_of(int warp, const Shape& shape, unsigned char* memory) {
    const int listed = min(shape.k, shape.groups);
    unsigned long long* keys = reinterpret_cast<unsigned long long*>(memory);
    unsigned* maxima = reinterpret_cast<unsigned*>(keys + kRows * shape.places);
    int* chosen = reinterpret_cast<int*>(maxima + kRows * shape.groups);
    return {maxima + warp * shape.groups, chosen + warp * listed, keys + warp * shape.places, shape.places};
}

size_t bytes_of(const Shape& shape) {
    const int listed = shape.k < shape.groups ? shape.k : shape.groups;
    return kRows * (sizeof(unsigned long long) * shape.places + sizeof(unsigned) * (shape.groups + listed));
}

__device__ unsigned rank_of_largest(float4 scores) {
    const bool spoilt = isnan(scores.x) || isnan(scores.y) || isnan(scores.z) || isnan(scores.w);
    return spoilt ? kSpoilt : rank_of(fmaxf(fmaxf(scores.x, scores.y), fmaxf(scores.z, scores.w)));
}

// maxima[row][group] for the block's rows, all warps sweeping the columns together.
__device__ void find_group_maxima(const ScoreRows& rows, int64_t first_row, int here, const Shape& shape,
                                  unsigned* maxima) {
    constexpr int kAhead = 2;
    constexpr int64_t kSweep = kAhead * kWarpColumns;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int64_t base = warp * kSweep; base < rows.width; base += kRows * kSweep) {
        float4 scores[kAhead][kRows];
#pragma unroll
        for (int a = 0; a < kAhead; ++a) {
            const int64_t column = base + a * kWarpColumns + 4 * lane;
            if (column >= rows.width) continue;
#pragma unroll
            for (int r = 0; r < kRows; ++r)
                if (r < here) scores[a][r] = rows.raw(first_row + r, column);
        }
#pragma unroll
        for (int a = 0; a < kAhead; ++a) {
            const int64_t column = base + a * kWarpColumns + 4 * lane;
            const bool inside = column < rows.width;
            float4 bias = {}, scale = {};
            if (inside) bias = rows.bias_at(column), scale = rows.scale_at(column);
#pragma unroll
            for (int r = 0; r < kRows; ++r) {
                unsigned rank =
                    inside && r < here ? rank_of_largest(rows.scored(scores[a][r], bias, scale)) : 0;
#pragma unroll
                for (int apart = kCellLanes / 2; apart > 0; apart /= 2)
                    rank = max(rank, __shfl_xor_sync(kAllLanes, rank, apart));
                if (rank != 0 && lane % kCellLanes == 0)
                    atomicMax(&maxima[r * shape.groups + (column >> shape.group_bits)], rank);
            }
        }
    }
}

__global__ void __launch_bounds__(kThreads) topk_select_kernel(ScoreRows rows, int64_t count, Shape shape,
                                                               bool relu, float* values, int32_t* columns) {
    extern __shared__ __align__(16) unsigned char memory[];
    const int warp = threadIdx.x / 32;
    const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kRows, row = first_row + warp;
    const int here = static_cast<int>(min(count - first_row, static_cast<int64_t>(kRows)));
    unsigned* maxima = place_of(0, shape, memory).maxima;
    for (int i = threadIdx.x; i < kRows * shape.groups; i += kThreads) maxima[i] = 0;
    __syncthreads();
    find_group_maxima(rows, first_row, here, shape, maxima);
    __syncthreads();
    if (warp >= here) return;
    finish_row(rows, row, shape.group_bits, shape.groups, shape.k, relu, place_of(warp, shape, memory),
               values + row * shape.k, columns + row * shape.k);
}

// The same where the matrix product has left the maxima: group_maxima [count, groups].
__global__ void __launch_bounds__(kThreads)
    topk_finish_kernel(ScoreRows rows, int64_t count, Shape shape, const unsigned* group_maxima, bool relu,
                       float* values, int32_t* columns) {
    extern __shared__ __align__(16) unsigned char memory[];
    const int warp = threadIdx.x / 32;
    const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + warp;
    if (row >= count) return;
    const RowPlace place = place_of(warp, shape, memory);
    for (int g = threadIdx.x % 32; g < shape.groups; g += 32)
        place.maxima[g] = group_maxima[row * shape.groups + g];
    __syncwarp();
    finish_row(rows, row, shape.group_bits, shape.groups, shape.k, relu, place, values + row * shape.k,
               columns + row * shape.k);
}

int64_t group_count(int64_t width, int bits) {
    return (width + (int64_t{1} << bits) - 1) >> bits;
}

// Cells of 32 columns, or larger groups where a row is too long for the place of the maxima.
int group_bits_for(int64_t width) {
    int bits = 5;
    while (group_count(width, bits) > kMaxGroups) ++bits;
    return bits;
}

Shape shape_for(int64_t width, int64_t k, int group_bits) {
    int places = 2;
    while (places < k + kWarpColumns) places *= 2;
    return {group_bits, static_cast<int>(group_count(width, group_bits)), static_cast<int>(k), places};
}

bool fits(int64_t rows, int64_t width, int64_t k) {
    return k >= 1 && k <= width && k <= SAERL_TOPK_SELECT_MAX_K && rows >= 0 &&
           rows <= int64_t{kRows} * 0x7FFFFFFF && width <= 0x7FFFFFFF;
}

unsigned blocks_for(int64_t rows) {
    return static_cast<unsigned>((rows + kRows - 1) / kRows);
}

}  // namespace

extern "C" int saerl_topk_select(const float* scores, int64_t rows, int64_t width, int64_t row_stride,
                                 const float* bias, const float* scale, int64_t k, int relu, float* values,
                                 int32_t* columns, int device, void* stream) {
    if (rows == 0) return cudaSuccess;
    if (!fits(rows, width, k)) return cudaErrorInvalidValue;
    const OnDevice there(device);
    if (there.error() != cudaSuccess) return there.error();
    const Shape shape = shape_for(width, k, group_bits_for(width));
    const size_t bytes = bytes_of(shape);
    const cudaError_t error = allow_shared_memory(topk_select_kernel, bytes);
    if (error != cudaSuccess) return error;
    topk_select_kernel<<<blocks_for(rows), kThreads, bytes, static_cast<cudaStream_t>(stream)>>>(
        score_rows(scores, width, row_stride, bias, scale), rows, shape, relu != 0, values, columns);
    return cudaGetLastError();
}

extern "C" int saerl_topk_finish(const float* scores, int64_t rows, int64_t width, int64_t row_stride,
                                 const uint32_t* group_maxima, int group_bits, int64_t k, int relu,
                                 float* values, int32_t* columns, int device, void* stream) {
    if (rows == 0) return cudaSuccess;
    if (!fits(rows, width, k) || group_bits < 5 || group_bits > 30 ||
        group_count(width, group_bits) > kMaxGroups) {
        return cudaErrorInvalidValue;
    }
    const OnDevice there(device);
    if (there.error() != cudaSuccess) return there.error();
    const Shape shape = shape_for(width, k, group_bits);
    const size_t bytes = bytes_of(shape);
    const cudaError_t error = allow_shared_memory(topk_finish_kernel, bytes);
    if (error != cudaSuccess) return error;
    topk_finish_kernel<<<blocks_for(rows), kThreads, bytes, static_cast<cudaStream_t>(stream)>>>(
        score_rows(scores, width, row_stride, nullptr, nullptr), rows, shape, group_maxima, relu != 0, values,
        columns);
    return cudaGetLastError();
}

extern "C" const char* saerl_cuda_error(int code) {
    return cudaGetErrorString(static_cast<cudaError_t>(code));
}
