// Sparse rows pooled segment by segment.
//
//     out[s][j] = pool over the entries e of segment s with columns[e] = j of values[e]
//
// Floor:  reading each entry once, one read, add and store per entry in the nearest cache, and writing the
//         result once into fresh memory.
// Trick:  the sums of one segment lie in a dense row of latents that stays in the second-level cache, so that
//         an entry costs one addition and nothing is sorted: reading the row out gives the columns in order.
//         One mark per 64 latents says which parts have to be read out and cleared; a segment of many entries
//         has all of them read. Columns are checked a few at a time, right before they are used.
//         The result is written where it stays (array.h): segments are pooled in waves, and in a wave the
//         first thread writes behind what is there, the others into room of their own that is then copied.
//
// Entries are added in their order in float32, each segment by one thread: the number of threads changes no
// bits. Zeros are left out; NaN is not zero. The row takes 4 bytes per latent and thread (8 for max).
#pragma once

#include <cstdint>
#include <vector>

#include "array.h"
#include "sparse_kernels.h"

namespace saerl {

enum class Pooling { sum, mean, max, count };

// Segment s owns the entries starts[s] .. stops[s] of `columns` and `values`, which come from tokens[s] tokens.
struct Segments {
    const int64_t* starts;   // IN  [segments]
    const int64_t* stops;    // IN  [segments]
    const int64_t* tokens;   // IN  [segments]
    const int32_t* columns;  // IN  [entries]
    const float* values;     // IN  [entries]
    int64_t segments;
    int64_t entries;
    int64_t latents;
};

// What pooling gives: the entries of all segments one after the other, counts[s] of segment s.
struct Pooled {
    std::vector<int64_t> counts;
    Array<int32_t> columns;
    Array<float> values;
};

// Throws std::out_of_range where a column of a segment is none of 0..latents-1.
Pooled pool_segments(const Segments& segments, Pooling pooling, const SparseKernels& kernels,
                     int64_t threads);

}  // namespace saerl
