// What the matrix product of an encode needs beforehand: the rows that count side by side, and the folded bias.
//
//     gathered[i] = x[row_index[i]]                              (gather)
//     folded[j]   = b_enc[j] - sum_d w_enc[j][d] b_dec[d]        (fold; summed in float64, rounded once)
//
// so that  (x - b_dec) w_enc^T + b_enc = x w_enc^T + folded  keeps 16-bit inputs as they are for the tensor cores.
//
// Floor:  gather 2 * width * 2 bytes a row (1.4 ns at width 1,536 on an H200, of 96 ns for the product with
//         24,576 latents); fold reads w_enc once (75 MB, 18 us).
// Trick:  the fold costs what it would cost to look whether w_enc is still what it was, so it is made anew for
//         each call, and no cache can be stale. A row_index that names no row gives a row of ones in every bit,
//         which is NaN in each type and comes out as a NaN row: no memory is touched, nothing waits for a check.
//
// Not timed yet: docs/measured.md.
#include <cuda_fp16.h>

#include "launchers.h"
#include "on_device.h"
#include "score_rows.cuh"

namespace {

using namespace saerl;

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;

template <typename Piece>
__global__ void __launch_bounds__(kThreads)
    gather_rows_kernel(const unsigned char* x, int64_t x_rows, int64_t pieces, int64_t row_bytes,
                       const int64_t* row_index, unsigned char* gathered) {
    const int64_t i = blockIdx.x, from = row_index[i];
    const bool named = from >= 0 && from < x_rows;
    const Piece* source = reinterpret_cast<const Piece*>(x + (named ? from * row_bytes : 0));
    Piece* target = reinterpret_cast<Piece*>(gathered) + i * pieces;
    for (int64_t p = threadIdx.x; p < pieces; p += kThreads) {
        if (named)
            target[p] = source[p];
        else
            memset(&target[p], 0xFF, sizeof(Piece));
    }
}

__device__ double widened(uint16_t bits, bool bfloat16) {
    return bfloat16 ? __uint_as_float(static_cast<unsigned>(bits) << 16)
                    : __half2float(__ushort_as_half(bits));
}

// A warp per latent; lane l sums the columns l, l + 32, ..., and the lanes are added as a tree.
__global__ void __launch_bounds__(kThreads)
    fold_bias_kernel(const uint16_t* w, int64_t latents, int64_t width, int64_t row_stride,
                     int64_t column_stride, bool bfloat16, const float* b_enc, const float* b_dec,
                     float* folded) {
    const int lane = threadIdx.x % 32;
    const int64_t j = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
    if (j >= latents) return;
    double sum = 0.0;
#pragma unroll 4
    for (int64_t d = lane; d < width; d += 32)
        sum += widened(w[j * row_stride + d * column_stride], bfloat16) * b_dec[d];
    for (int apart = 16; apart > 0; apart /= 2) sum += __shfl_xor_sync(kAllLanes, sum, apart);
    if (lane == 0) folded[j] = static_cast<float>(b_enc[j] - sum);
}

}  // namespace

extern "C" int saerl_gather_rows(const void* x, int64_t x_rows, int64_t width_bytes, int64_t row_bytes,
                                 const int64_t* row_index, int64_t rows, void* gathered, int device,
                                 void* stream) {
    if (rows == 0 || width_bytes == 0) return cudaSuccess;
    if (rows < 0 || rows > 0x7FFFFFFF || x_rows < 0 || width_bytes % 2) return cudaErrorInvalidValue;
    const OnDevice there(device);
    if (there.error() != cudaSuccess) return there.error();
    const unsigned blocks = static_cast<unsigned>(rows);
    const unsigned char* from = static_cast<const unsigned char*>(x);
    unsigned char* to = static_cast<unsigned char*>(gathered);
    const bool aligned =
        width_bytes % 16 == 0 && row_bytes % 16 == 0 && starts_at_16_bytes(x) && starts_at_16_bytes(gathered);
    if (aligned) {
        gather_rows_kernel<uint4><<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
            from, x_rows, width_bytes / 16, row_bytes, row_index, to);
    } else {
        gather_rows_kernel<uint16_t><<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
            from, x_rows, width_bytes / 2, row_bytes, row_index, to);
    }
    return cudaGetLastError();
}

extern "C" int saerl_fold_bias(const uint16_t* w, int64_t latents, int64_t width, int64_t row_stride,
                               int64_t column_stride, int bfloat16, const float* b_enc, const float* b_dec,
                               float* folded, int device, void* stream) {
    if (latents == 0) return cudaSuccess;
    if (latents < 0 || latents > 0x7FFFFFFF || width < 0) return cudaErrorInvalidValue;
    const OnDevice there(device);
    if (there.error() != cudaSuccess) return there.error();
    const unsigned blocks = static_cast<unsigned>((latents + kWarps - 1) / kWarps);
    fold_bias_kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        w, latents, width, row_stride, column_stride, bfloat16 != 0, b_enc, b_dec, folded);
    return cudaGetLastError();
}
