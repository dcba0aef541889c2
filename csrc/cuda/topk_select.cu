// The k largest scores of each row, exactly; one block of threads per row.
//
//     values[i], columns[i] = topk_j score(i, j),   score(i, j) = (scores[i][j] + bias[j]) * scale[j]
//
// Floor:  reading each score once from memory (rows * width * 4 bytes).
// Trick:  the k-th largest *group maximum* t is a lower bound of the k-th largest score, so after one pass
//         over the row only the k groups that reach t are read again (from the L2 cache), and about 1.1 k
//         scores pass. When candidates outgrow their place they are sorted and cut back to the best k, which
//         raises t.
//
// Every step has a fixed order and there are no atomics: the same input gives the same bits. Descending; ties
// to the lower column; -0 counts as +0. A row with a NaN gives NaN values and columns 0..k-1.
#include <cuda_runtime.h>

#include "launchers.h"

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxGroups = 4096;
constexpr int kPlaces = 1024;  // candidates held at once, a power of two, at least max k + kThreads
constexpr unsigned kAllLanes = 0xFFFFFFFFu;
static_assert(kPlaces >= SAERL_TOPK_SELECT_MAX_K + kThreads, "no place for one step of candidates");

struct Shared {
    unsigned maxima[kMaxGroups];
    unsigned short reaching[kMaxGroups];  // the groups whose maximum reaches the floor, ascending
    unsigned long long keys[kPlaces];
    int warp_counts[kWarps];
};

struct Row {
    const float* scores;
    const float* bias;
    const float* scale;
    int64_t width;

    __device__ float score(int64_t j) const {
        float value = scores[j];
        if (bias) value += bias[j];
        if (scale) value *= scale[j];
        return value;
    }
};

// Floats as unsigned numbers of the same order. No number maps to 0, so 0 is "nothing".
__device__ unsigned rank_of(float value) {
    const unsigned bits = __float_as_uint(value + 0.0f);  // -0 becomes +0
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ float value_of(unsigned rank) {
    return __uint_as_float(rank & 0x80000000u ? rank & 0x7FFFFFFFu : ~rank);
}

// The larger key is the larger score, or the lower column of equal ones.
__device__ unsigned long long key_of(unsigned rank, int64_t column) {
    return static_cast<unsigned long long>(rank) << 32 | (0xFFFFFFFFu - static_cast<unsigned>(column));
}

// The place of this thread's item among those of all threads with `present`, in thread order; `total` = all.
__device__ int place_of(bool present, int* warp_counts, int& total) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const unsigned lanes = __ballot_sync(kAllLanes, present);
    if (lane == 0) warp_counts[warp] = __popc(lanes);
    __syncthreads();
    int before = 0;
    total = 0;
    for (int w = 0; w < kWarps; ++w) {
        if (w < warp) before += warp_counts[w];
        total += warp_counts[w];
    }
    __syncthreads();
    return before + __popc(lanes & ((1u << lane) - 1));
}

// Pass 1, a warp per group: maxima[g]. Returns true in every thread when the row holds a NaN.
__device__ bool find_group_maxima(const Row& row, int64_t group, int groups, unsigned* maxima) {
    const int lane = threadIdx.x % 32;
    bool nan = false;
    for (int g = threadIdx.x / 32; g < groups; g += kWarps) {
        const int64_t begin = g * group;
        const int64_t end = begin + group < row.width ? begin + group : row.width;
        unsigned largest = 0;
#pragma unroll 8
        for (int64_t j = begin + lane; j < end; j += 32) {
            const float value = row.score(j);
            nan |= isnan(value);
            largest = max(largest, rank_of(value));
        }
        largest = __reduce_max_sync(kAllLanes, largest);
        if (lane == 0) maxima[g] = largest;
    }
    return __syncthreads_or(nan);
}

// The k-th largest of the maxima, bit by bit from the top: the largest t that at least k of them reach.
__device__ unsigned kth_largest(const unsigned* maxima, int groups, int k) {
    unsigned t = 0;
    for (int bit = 31; bit >= 0; --bit) {
        const unsigned trial = t | 1u << bit;
        int reaching = 0;
        for (int base = 0; base < groups; base += kThreads) {
            const int g = base + threadIdx.x;
            reaching += __syncthreads_count(g < groups && maxima[g] >= trial);
        }
        if (reaching >= k) t = trial;
    }
    return t;
}

// The groups that reach the floor, in ascending order; returns their number.
__device__ int list_reaching(const unsigned* maxima, int groups, unsigned floor, Shared& shared) {
    int listed = 0;
    for (int base = 0; base < groups; base += kThreads) {
        const int g = base + threadIdx.x;
        const bool reaches = g < groups && maxima[g] >= floor;
        int total;
        const int place = listed + place_of(reaches, shared.warp_counts, total);
        if (reaches) shared.reaching[place] = static_cast<unsigned short>(g);
        listed += total;
    }
    __syncthreads();
    return listed;
}

// Bitonic sort of keys[0, size), descending; size is a power of two. The places from `held` on are emptied.
__device__ void sort_keys(unsigned long long* keys, int held, int size) {
    for (int i = held + threadIdx.x; i < size; i += kThreads) keys[i] = 0;
    __syncthreads();
    for (int run = 2; run <= size; run *= 2) {
        for (int apart = run / 2; apart > 0; apart /= 2) {
            for (int pair = threadIdx.x; pair < size / 2; pair += kThreads) {
                const int low = 2 * apart * (pair / apart) + pair % apart;
                const unsigned long long a = keys[low], b = keys[low + apart];
                const bool descending = (low & run) == 0;
                if ((a < b) == descending) {
                    keys[low] = b;
                    keys[low + apart] = a;
                }
            }
            __syncthreads();
        }
    }
}

// Pass 2: every score of the listed groups that reaches the floor becomes a candidate. Returns their number.
__device__ int collect(const Row& row, int group_bits, int listed, unsigned floor, int k, Shared& shared) {
    int held = 0;
    const int64_t group = int64_t{1} << group_bits, elements = listed * group;
    for (int64_t base = 0; base < elements; base += kThreads) {
        if (held > kPlaces - kThreads) {
            sort_keys(shared.keys, held, kPlaces);
            held = k;
            // later scores lie further right and lose a tie, so they have to be above the k-th
            floor = static_cast<unsigned>(shared.keys[k - 1] >> 32) + 1;
            __syncthreads();
        }
        const int64_t element = base + threadIdx.x;
        const int64_t j = element < elements
                              ? shared.reaching[element >> group_bits] * group + (element & (group - 1))
                              : row.width;
        const unsigned rank = j < row.width ? rank_of(row.score(j)) : 0;
        const bool reaches = rank != 0 && rank >= floor;
        int total;
        const int place = held + place_of(reaches, shared.warp_counts, total);
        if (reaches) shared.keys[place] = key_of(rank, j);
        held += total;
    }
    __syncthreads();
    return held;
}

__global__ void __launch_bounds__(kThreads)
    topk_select_kernel(const float* scores, int64_t width, int64_t row_stride, const float* bias,
                       const float* scale, int group_bits, int groups, int k, bool relu, float* values,
                       int32_t* columns) {
    __shared__ Shared shared;
    const int64_t i = blockIdx.x;
    const Row row = {scores + i * row_stride, bias, scale, width};
    values += i * k;
    columns += i * k;

    if (find_group_maxima(row, int64_t{1} << group_bits, groups, shared.maxima)) {
        for (int place = threadIdx.x; place < k; place += kThreads) {
            values[place] = __uint_as_float(0x7FC00000u);
            columns[place] = place;
        }
        return;
    }
    // with fewer than k groups their maxima bound nothing, and every score is looked at
    const unsigned floor = groups >= k ? kth_largest(shared.maxima, groups, k) : 0;
    const int listed = list_reaching(shared.maxima, groups, floor, shared);
    const int held = collect(row, group_bits, listed, floor, k, shared);

    int size = 2;
    while (size < held) size *= 2;
    sort_keys(shared.keys, held, size);
    for (int place = threadIdx.x; place < k; place += kThreads) {
        const unsigned long long key = shared.keys[place];
        const float value = value_of(static_cast<unsigned>(key >> 32));
        values[place] = relu && !(value > 0) ? 0.0f : value;
        columns[place] = static_cast<int32_t>(0xFFFFFFFFu - static_cast<unsigned>(key));
    }
}

int64_t group_count(int64_t width, int bits) {
    return (width + (int64_t{1} << bits) - 1) >> bits;
}

// The width of a group is a power of two: the largest of 256, 128, 64, 32 that leaves 2 k groups (else 32),
// or larger where a row is too long for the place of the maxima.
int group_bits_for(int64_t width, int64_t k) {
    int bits = 8;
    while (bits > 5 && group_count(width, bits) < 2 * k) --bits;
    while (group_count(width, bits) > kMaxGroups) ++bits;
    return bits;
}

}  // namespace

extern "C" int saerl_topk_select(const float* scores, int64_t rows, int64_t width, int64_t row_stride,
                                 const float* bias, const float* scale, int64_t k, int relu, float* values,
                                 int32_t* columns, int device, void* stream) {
    if (rows == 0) return cudaSuccess;
    if (k < 1 || k > width || k > SAERL_TOPK_SELECT_MAX_K || rows < 0 || rows > 0x7FFFFFFF ||
        width > 0x7FFFFFFF) {
        return cudaErrorInvalidValue;
    }
    // else the kernel would go to whatever device is current
    int before = 0;
    cudaError_t error = cudaGetDevice(&before);
    if (error == cudaSuccess) error = cudaSetDevice(device);
    if (error != cudaSuccess) return error;
    const int bits = group_bits_for(width, k);
    const int groups = static_cast<int>(group_count(width, bits));
    topk_select_kernel<<<static_cast<unsigned>(rows), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        scores, width, row_stride, bias, scale, bits, groups, static_cast<int>(k), relu != 0, values,
        columns);
    error = cudaGetLastError();
    cudaSetDevice(before);
    return error;
}

extern "C" const char* saerl_cuda_error(int code) {
    return cudaGetErrorString(static_cast<cudaError_t>(code));
}
