// The sum of the sparse rows of each cluster, as dense rows.
//
//     sums[c][j] = sum over the rows i of cluster c of value(i, j)
//
// Floor:  reading each entry once (8 bytes) and writing each cluster once: 100,000 rows of 2,457 entries are 2 GB,
//         0.5 ms at the 4.3 TB/s of an H200.
// Trick:  rows come sorted by cluster, cut into pieces of like size (saerl_fast/kernels/pieces.py). A block adds the
//         rows of one piece into shared memory, a place per latent, in their order (ordered_rows.cuh); the pieces of
//         a cluster that has several are added up afterwards, in their order. Where not all latents fit, the piece is
//         read once per range.
//
// No atomics: the order of every sum is given by the labels and the shapes. A column outside of the latents is left out:
// the caller has checked. CUDA, not Triton: it scatters into shared memory. Not timed yet: docs/measured.md.
#include "launchers.h"
#include "on_device.h"
#include "ordered_rows.cuh"

namespace {

using namespace saerl;

struct SparseRows {
    const int64_t* indptr;
    const int32_t* columns;
    const float* values;
    int64_t rows, entries, latents;
};

// Piece p holds the places begins[p] .. ends[p] of `order`; its sum goes to sums[target], or to parts[-1 - target].
struct Pieces {
    const int64_t* begins;
    const int64_t* ends;
    const int64_t* targets;
    const int64_t* order;
};

__global__ void __launch_bounds__(kRowThreads, kRowBlocks)
    sum_pieces_kernel(SparseRows in, Pieces pieces, int64_t clusters, int64_t range, float* sums,
                      float* parts) {
    extern __shared__ __align__(16) unsigned char memory[];
    float* const row = reinterpret_cast<float*>(memory);
    const int64_t p = blockIdx.x, target = pieces.targets[p];
    if (target >= clusters) return;
    float* const out = target < 0 ? parts + (-1 - target) * in.latents : sums + target * in.latents;
    for (int64_t low = 0; low < in.latents; low += range) {
        const int width = static_cast<int>(min(range, in.latents - low));
        for (int i = threadIdx.x; i < width; i += kRowThreads) row[i] = 0.0f;
        __syncthreads();
        add_rows_in_order(
            pieces.begins[p], pieces.ends[p],
            [&](int64_t place) {
                const int64_t i = pieces.order[place];
                if (i < 0 || i >= in.rows) return Span{0, 0};
                const Span found = {in.indptr[i], in.indptr[i + 1]};
                const bool there = 0 <= found.begin && found.end <= in.entries;
                return there ? found : Span{0, 0};
            },
            in.columns, in.values,
            [&](int32_t column, float value) {
                const int64_t i = column - low;
                if (i >= 0 && i < width) row[i] += value;
            });
        for (int i = threadIdx.x; i < width; i += kRowThreads) out[low + i] = row[i];
        __syncthreads();
    }
}

// sums[run] = its parts, added in their order; runs of one piece are there already.
__global__ void __launch_bounds__(kRowThreads, kRowBlocks)
    add_parts_kernel(const int64_t* first_parts, const int64_t* counts, const float* parts, int64_t width,
                     int64_t stretches, float* sums) {
    const int64_t run = blockIdx.x / stretches;
    const int64_t j = blockIdx.x % stretches * kRowThreads + threadIdx.x;
    if (counts[run] < 2 || j >= width) return;
    const float* part = parts + first_parts[run] * width + j;
    float sum = 0.0f;
#pragma unroll 4
    for (int64_t i = 0; i < counts[run]; ++i) sum += part[i * width];
    sums[run * width + j] = sum;
}

}  // namespace

extern "C" int saerl_cluster_sums(const int64_t* indptr, const int32_t* columns, const float* values,
                                  int64_t rows, int64_t entries, int64_t latents, const int64_t* begins,
                                  const int64_t* ends, const int64_t* targets, int64_t pieces,
                                  const int64_t* order, const int64_t* first_parts, const int64_t* counts,
                                  int64_t clusters, int64_t shared_bytes, float* parts, float* sums,
                                  int device, void* stream) {
    const int64_t fitting = shared_bytes / 4 / 32 * 32;
    const int64_t range = latents < fitting ? latents : fitting;
    const int64_t stretches = (latents + kRowThreads - 1) / kRowThreads;
    if (latents == 0 || clusters == 0) return cudaSuccess;
    if (latents < 0 || clusters < 0 || pieces < clusters || pieces > 0x7FFFFFFF || range < 1 ||
        clusters > 0x7FFFFFFF / stretches) {
        return cudaErrorInvalidValue;
    }
    const OnDevice here(device);
    if (here.error() != cudaSuccess) return here.error();
    const size_t bytes = static_cast<size_t>(range) * sizeof(float);
    const cudaError_t error = allow_shared_memory(sum_pieces_kernel, bytes);
    if (error != cudaSuccess) return error;
    const SparseRows in = {indptr, columns, values, rows, entries, latents};
    const Pieces cut = {begins, ends, targets, order};
    const unsigned blocks = static_cast<unsigned>(pieces);
    sum_pieces_kernel<<<blocks, kRowThreads, bytes, static_cast<cudaStream_t>(stream)>>>(in, cut, clusters,
                                                                                         range, sums, parts);
    const unsigned tiles = static_cast<unsigned>(clusters * stretches);
    const size_t none = 0;
    add_parts_kernel<<<tiles, kRowThreads, none, static_cast<cudaStream_t>(stream)>>>(
        first_parts, counts, parts, latents, stretches, sums);
    return cudaGetLastError();
}
