// Sparse rows, one after the other, by one block of threads.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace saerl {

constexpr int kRowThreads = 256;
constexpr int kRowBlocks =
    2;  // on a multiprocessor at least; left to itself, nvcc spills to make room for four

// The entries begin .. end of the columns and values.
struct Span {
    int64_t begin, end;
};

// add(column, value) for every entry of the rows first .. last, which lie at span_of(row). Threads share the entries of
// a row, and wait for each other after it: where the columns of a row are distinct, `add` may write to a place per
// column with plain stores, and each place sees its rows in their order. The first entries of eight rows are on their
// way at once. All threads of the block must come here.
template <typename SpanOf, typename Add>
__device__ void add_rows_in_order(int64_t first, int64_t last, SpanOf span_of, const int32_t* columns,
                                  const float* values, Add add) {
    constexpr int kAhead = 8;
    for (int64_t base = first; base < last; base += kAhead) {
        Span spans[kAhead];
        int32_t column[kAhead];
        float value[kAhead];
#pragma unroll
        for (int a = 0; a < kAhead; ++a) {
            spans[a] = base + a < last ? span_of(base + a) : Span{0, 0};
            const int64_t entry = spans[a].begin + threadIdx.x;
            if (entry < spans[a].end) {
                column[a] = columns[entry];
                value[a] = values[entry];
            }
        }
#pragma unroll
        for (int a = 0; a < kAhead; ++a) {
            const int64_t entry = spans[a].begin + threadIdx.x;
            if (entry < spans[a].end) add(column[a], value[a]);
            for (int64_t later = entry + kRowThreads; later < spans[a].end; later += kRowThreads)
                add(columns[later], values[later]);
            __syncthreads();
        }
    }
}

}  // namespace saerl
