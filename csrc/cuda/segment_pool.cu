// Sparse rows pooled segment by segment; one block of threads per segment.
//
//     out[s][j] = pool over the tokens t of segment s of value(t, j)       sum, mean, max or count
//
// Floor:  reading each entry once: 8 bytes, 0.12 ms for a million tokens of 64 at the 4.3 TB/s of an H200. What it
//         takes instead is one wait of a block per token, some 35 ns with 132 blocks or more at work: about 0.3 ms.
// Trick:  the sums of a segment lie in shared memory, a place per latent: the latents of one token are distinct, so
//         an entry costs a plain addition, and a barrier after each token keeps them in token order. Reading the row
//         out by ballots gives the columns sorted. Where not all latents fit, the segment is read once per range.
//
// The host gives each segment as much room as it can need and waits for nothing: what was written is counted. A
// segment with a column outside of the latents, or with offsets that cannot be, reads and writes nothing outside and
// counts -1. No atomics: the same bits each time, and those of the CPU. CUDA, not Triton: it scatters into shared memory.
//
// Not timed yet: docs/measured.md.
#include "launchers.h"
#include "on_device.h"
#include "ordered_rows.cuh"

namespace {

using namespace saerl;

constexpr int kWarps = kRowThreads / 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

struct Tokens {
    const int64_t* begins;  // null: token t has the `kept` entries from t * kept on
    const int64_t* stops;
    int64_t tokens, kept;
    const int32_t* columns;
    const float* values;
    int64_t entries, latents;

    // The entries of token t; none, and `outside`, where they are not among those there are.
    __device__ Span span(int64_t t, bool& outside) const {
        if (!begins) return {t * kept, t * kept + kept};
        const Span found = {begins[t], stops[t]};
        if (0 <= found.begin && found.begin <= found.end && found.end <= entries) return found;
        outside = true;
        return {0, 0};
    }
};

struct Rows {
    const int64_t* starts;
    int64_t places;
    int64_t* counts;
    int32_t* columns;
    float* values;
};

// A place per latent of one range, in shared memory.
template <int kPooling>
struct Row {
    float* sums;
    unsigned* seen;  // tokens in which the latent is there; for max and count

    __device__ void clear(int place) const {
        if (kPooling != SAERL_POOL_COUNT) sums[place] = 0.0f;
        if (kPooling == SAERL_POOL_COUNT || kPooling == SAERL_POOL_MAX) seen[place] = 0;
    }
    __device__ void add(int place, float value) const {
        if (kPooling == SAERL_POOL_COUNT) {
            seen[place] += value != 0.0f;
        } else if (kPooling == SAERL_POOL_MAX) {
            // a NaN is taken, and afterwards nothing is above it
            if (seen[place]++ == 0 || value > sums[place] || isnan(value)) sums[place] = value;
        } else {
            sums[place] += value;
        }
    }
    __device__ float pooled(int place, int64_t tokens) const {
        if (kPooling == SAERL_POOL_COUNT) return static_cast<float>(seen[place]);
        const float sum = sums[place];
        if (kPooling == SAERL_POOL_MEAN) return sum / static_cast<float>(tokens);
        // a latent absent from some token is zero there
        if (kPooling == SAERL_POOL_MAX && seen[place] < tokens && sum < 0.0f) return 0.0f;
        return sum;
    }
};

// Writes what is not zero among the places 0 .. width as entries from `place` on, in their order, unless they are more
// than `room`; returns their number in every thread.
template <int kPooling>
__device__ int drain(const Row<kPooling>& row, int width, int64_t tokens, int64_t low, int64_t place,
                     int64_t room, int* warp_counts, const Rows& out) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int slice = (width + kRowThreads - 1) / kRowThreads * 32;
    const int begin = min(warp * slice, width), end = min(begin + slice, width);
    int kept = 0;
    for (int base = begin; base < end; base += 32) {
        const float value = base + lane < end ? row.pooled(base + lane, tokens) : 0.0f;
        kept += __popc(__ballot_sync(kAllLanes, value != 0.0f));
    }
    if (lane == 0) warp_counts[warp] = kept;
    __syncthreads();
    int total = 0;
    for (int w = 0; w < kWarps; ++w) {
        if (w < warp) place += warp_counts[w];
        total += warp_counts[w];
    }
    if (total <= room) {
        for (int base = begin; base < end; base += 32) {
            const float value = base + lane < end ? row.pooled(base + lane, tokens) : 0.0f;
            const unsigned lanes = __ballot_sync(kAllLanes, value != 0.0f);
            if (value != 0.0f) {
                const int64_t here = place + __popc(lanes & ((1u << lane) - 1));
                out.columns[here] = static_cast<int32_t>(low + base + lane);
                out.values[here] = value;
            }
            place += __popc(lanes);
        }
    }
    __syncthreads();
    return total;
}

template <int kPooling>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks)
    segment_pool_kernel(const int64_t* firsts, const int64_t* lasts, Tokens in, int64_t range, Rows out) {
    extern __shared__ __align__(16) unsigned char memory[];
    __shared__ int warp_counts[kWarps];
    const int64_t s = blockIdx.x;
    const int64_t first = firsts[s], last = lasts[s], place = out.starts[s], room = out.starts[s + 1] - place;
    bool outside =
        first < 0 || last < first || last > in.tokens || place < 0 || room < 0 || place > out.places - room;
    float* const sums = reinterpret_cast<float*>(memory);
    unsigned* const counts = reinterpret_cast<unsigned*>(memory);
    const Row<kPooling> row = {sums, kPooling == SAERL_POOL_MAX ? counts + range : counts};
    int64_t written = 0;
    const bool empty = outside || first == last;
    for (int64_t low = 0; low < in.latents && !empty; low += range) {
        const int width = static_cast<int>(min(range, in.latents - low));
        for (int i = threadIdx.x; i < width; i += kRowThreads) row.clear(i);
        __syncthreads();
        add_rows_in_order(
            first, last, [&](int64_t t) { return in.span(t, outside); }, in.columns, in.values,
            [&](int32_t column, float value) {
                if (column < 0 || column >= in.latents) outside = true;
                const int64_t i = column - low;
                if (i >= 0 && i < width) row.add(static_cast<int>(i), value);
            });
        const int64_t kept =
            drain(row, width, last - first, low, place + written, room - written, warp_counts, out);
        // only where the columns of a token were not distinct, or its entries not those that were given room
        if (kept > room - written) outside = true;
        written = min(written + kept, room);
    }
    outside = __syncthreads_or(outside);
    if (threadIdx.x == 0) out.counts[s] = outside ? -1 : written;
}

template <int kPooling>
cudaError_t launch(const int64_t* firsts, const int64_t* lasts, int64_t segments, const Tokens& in,
                   int64_t shared_bytes, const Rows& out, cudaStream_t stream) {
    const int64_t each = kPooling == SAERL_POOL_MAX ? 8 : 4;
    const int64_t fitting = shared_bytes / each / 32 * 32;
    if (fitting < 32) return cudaErrorInvalidValue;
    const int64_t range = in.latents < fitting ? in.latents : fitting;
    const size_t bytes = static_cast<size_t>(range * each);
    const cudaError_t error = allow_shared_memory(segment_pool_kernel<kPooling>, bytes);
    if (error != cudaSuccess) return error;
    const unsigned blocks = static_cast<unsigned>(segments);
    segment_pool_kernel<kPooling><<<blocks, kRowThreads, bytes, stream>>>(firsts, lasts, in, range, out);
    return cudaGetLastError();
}

}  // namespace

extern "C" int saerl_segment_pool(const int64_t* firsts, const int64_t* lasts, int64_t segments,
                                  const int64_t* begins, const int64_t* stops, int64_t tokens, int64_t kept,
                                  const int32_t* columns, const float* values, int64_t entries,
                                  int64_t latents, int pooling, const int64_t* starts, int64_t places,
                                  int64_t shared_bytes, int64_t* counts, int32_t* out_columns,
                                  float* out_values, int device, void* stream) {
    if (segments == 0) return cudaSuccess;
    if (segments < 0 || segments > 0x7FFFFFFF || latents < 1 || latents > 0x7FFFFFFF)
        return cudaErrorInvalidValue;
    if (!begins && tokens * kept > entries) return cudaErrorInvalidValue;
    const OnDevice here(device);
    if (here.error() != cudaSuccess) return here.error();
    const Tokens in = {begins, stops, tokens, kept, columns, values, entries, latents};
    const Rows out = {starts, places, counts, out_columns, out_values};
    const auto queue = static_cast<cudaStream_t>(stream);
    switch (pooling) {
        case SAERL_POOL_SUM:
            return launch<SAERL_POOL_SUM>(firsts, lasts, segments, in, shared_bytes, out, queue);
        case SAERL_POOL_MEAN:
            return launch<SAERL_POOL_MEAN>(firsts, lasts, segments, in, shared_bytes, out, queue);
        case SAERL_POOL_MAX:
            return launch<SAERL_POOL_MAX>(firsts, lasts, segments, in, shared_bytes, out, queue);
        case SAERL_POOL_COUNT:
            return launch<SAERL_POOL_COUNT>(firsts, lasts, segments, in, shared_bytes, out, queue);
        default:
            return cudaErrorInvalidValue;
    }
}
