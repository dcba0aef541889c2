// The rows that count, side by side, for the matrix product of an encode.
//
//     gathered[i] = x[row_index[i]]
//
// Floor:  2 * width * 2 bytes a row: 1.4 ns at width 1,536 on an H200, of 96 ns for the product with 24,576 latents.
// Trick:  a row_index that names no row gives a row of ones in every bit, which is NaN in each type and comes out as a
//         NaN row: no memory is touched, nothing waits for a check.
//
// Not timed yet: docs/measured.md.
#include "launchers.h"
#include "on_device.h"
#include "score_rows.cuh"

namespace {

using namespace saerl;

constexpr int kThreads = 128;

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
