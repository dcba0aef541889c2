// All scores above a threshold per column, as sparse rows: count, then write.
//
//     row i keeps  { (j, h) : h = (scores[i][j] + bias[j]) * scale[j] > theta[j] },   theta >= 0
//
// Floor:  reading each score once: rows * width * 4 bytes, 0.75 ms for 16,384 rows of 49,152 at the 4.3 TB/s of
//         an H200; the entries are 8 bytes each.
// Trick:  the count leaves one byte per cell of 32 columns. Writing reads those bytes and the cells that keep
//         something: about 8 of 196 kB of a row with 64 entries. Where an entry goes is known from the counts
//         alone, so rows come out sorted, without atomics, the same bits each time.
//
// The place for entries may be smaller than what is kept: the counts stay true, what would lie beyond the place
// is not written, and who called sees by the counts that it has to be done again with more.
// A row with a NaN score, or a NaN in theta, keeps one entry: column 0 with value NaN.
//
// Not timed yet: docs/measured.md.
#include "launchers.h"
#include "on_device.h"
#include "score_rows.cuh"

namespace {

using namespace saerl;

constexpr int kRows = 4;
constexpr int kThreads = 32 * kRows;
constexpr int kWriteWarps = 8;

// Entries among four columns from `column` on, of which those beyond the row count for nothing.
__device__ int kept_of(float4 scores, float4 theta, int64_t column, int64_t width, bool& spoilt) {
    const float score[4] = {scores.x, scores.y, scores.z, scores.w};
    const float least[4] = {theta.x, theta.y, theta.z, theta.w};
    int kept = 0;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
        spoilt |= isnan(score[c]) || isnan(least[c]);
        kept += column + c < width && score[c] > least[c];
    }
    return kept;
}

// cell_counts[i][cell] and row_counts[i]; four rows share each read of bias, scale and theta.
__global__ void __launch_bounds__(kThreads)
    threshold_count_kernel(ScoreRows rows, ScoreRows thresholds, int64_t count, int64_t cells,
                           uint8_t* cell_counts, int64_t* row_counts) {
    __shared__ int totals[kRows];
    __shared__ int spoilt_rows[kRows];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kRows;
    const int here = static_cast<int>(min(count - first_row, static_cast<int64_t>(kRows)));
    if (threadIdx.x < kRows) totals[threadIdx.x] = spoilt_rows[threadIdx.x] = 0;
    __syncthreads();
    int total[kRows] = {};
    bool spoilt[kRows] = {};
    for (int64_t base = warp * kWarpColumns; base < rows.width; base += kRows * kWarpColumns) {
        const int64_t column = base + 4 * lane;
        const bool inside = column < rows.width;
        float4 scores[kRows] = {}, bias = {}, scale = {}, theta = {};
        if (inside) {
#pragma unroll
            for (int r = 0; r < kRows; ++r)
                if (r < here) scores[r] = rows.raw(first_row + r, column);
            bias = rows.bias_at(column), scale = rows.scale_at(column), theta = thresholds.raw(0, column);
        }
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
            int kept = inside && r < here ? kept_of(rows.scored(scores[r], bias, scale), theta, column,
                                                    rows.width, spoilt[r])
                                          : 0;
            total[r] += kept;
#pragma unroll
            for (int apart = kCellLanes / 2; apart > 0; apart /= 2)
                kept += __shfl_xor_sync(kAllLanes, kept, apart);
            if (inside && r < here && lane % kCellLanes == 0)
                cell_counts[(first_row + r) * cells + column / kCell] = static_cast<uint8_t>(kept);
        }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        const int sum = __reduce_add_sync(kAllLanes, total[r]);
        const unsigned lanes = __ballot_sync(kAllLanes, spoilt[r]);
        if (lane == 0) {
            atomicAdd(&totals[r], sum);
            if (lanes) atomicOr(&spoilt_rows[r], 1);
        }
    }
    __syncthreads();
    const int r = threadIdx.x;
    // a row that is spoilt is marked by a count of -1 here, which the caller turns into one entry
    if (r < here) row_counts[first_row + r] = spoilt_rows[r] ? -1 : totals[r];
}

// A warp per row: from cell to cell that keeps something, in ascending order.
__global__ void __launch_bounds__(32 * kWriteWarps)
    threshold_write_kernel(ScoreRows rows, ScoreRows thresholds, int64_t count, int64_t cells,
                           const uint8_t* cell_counts, const int64_t* row_counts, const int64_t* starts,
                           int64_t capacity, int32_t* columns, float* values) {
    const int lane = threadIdx.x % 32;
    const int64_t row = static_cast<int64_t>(blockIdx.x) * kWriteWarps + threadIdx.x / 32;
    if (row >= count) return;
    int64_t next = starts[row];
    if (row_counts[row] < 0) {
        if (lane == 0 && next < capacity) {
            columns[next] = 0;
            values[next] = __uint_as_float(0x7FC00000u);
        }
        return;
    }
    for (int64_t base = 0; base < cells; base += 32) {
        const bool keeps = base + lane < cells && cell_counts[row * cells + base + lane] != 0;
        for (unsigned left = __ballot_sync(kAllLanes, keeps); left != 0; left &= left - 1) {
            const int64_t j = (base + __ffs(left) - 1) * kCell + lane;
            float score = 0.0f;
            bool kept = false;
            if (j < rows.width) {
                score = rows.one(row, j);
                kept = score > thresholds.scores[j];
            }
            const unsigned lanes = __ballot_sync(kAllLanes, kept);
            const int64_t place = next + __popc(lanes & ((1u << lane) - 1));
            if (kept && place < capacity) {
                columns[place] = static_cast<int32_t>(j);
                values[place] = score;
            }
            next += __popc(lanes);
        }
    }
}

bool fits(int64_t rows, int64_t width) {
    return rows >= 0 && rows <= 0x7FFFFFFF && width >= 1 && width <= 0x7FFFFFFF;
}

int64_t cells_of(int64_t width) {
    return (width + kCell - 1) / kCell;
}

}  // namespace

extern "C" int saerl_threshold_count(const float* scores, int64_t rows, int64_t width, int64_t row_stride,
                                     const float* bias, const float* scale, const float* theta,
                                     uint8_t* cell_counts, int64_t* row_counts, int device, void* stream) {
    if (rows == 0) return cudaSuccess;
    if (!fits(rows, width)) return cudaErrorInvalidValue;
    const OnDevice there(device);
    if (there.error() != cudaSuccess) return there.error();
    const unsigned blocks = static_cast<unsigned>((rows + kRows - 1) / kRows);
    threshold_count_kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        score_rows(scores, width, row_stride, bias, scale), score_rows(theta, width, 0, nullptr, nullptr),
        rows, cells_of(width), cell_counts, row_counts);
    return cudaGetLastError();
}

extern "C" int saerl_threshold_write(const float* scores, int64_t rows, int64_t width, int64_t row_stride,
                                     const float* bias, const float* scale, const float* theta,
                                     const uint8_t* cell_counts, const int64_t* row_counts,
                                     const int64_t* starts, int64_t capacity, int32_t* columns, float* values,
                                     int device, void* stream) {
    if (rows == 0) return cudaSuccess;
    if (!fits(rows, width) || capacity < 0) return cudaErrorInvalidValue;
    const OnDevice there(device);
    if (there.error() != cudaSuccess) return there.error();
    const unsigned blocks = static_cast<unsigned>((rows + kWriteWarps - 1) / kWriteWarps);
    threshold_write_kernel<<<blocks, 32 * kWriteWarps, 0, static_cast<cudaStream_t>(stream)>>>(
        score_rows(scores, width, row_stride, bias, scale), score_rows(theta, width, 0, nullptr, nullptr),
        rows, cells_of(width), cell_counts, row_counts, starts, capacity, columns, values);
    return cudaGetLastError();
}
