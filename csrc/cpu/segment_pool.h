// Sparse rows pooled segment by segment.
//
//     out[s][j] = pool over the entries e of segment s with columns[e] = j of values[e]
//
// Floor:  reading each entry once, and one read, add and store per entry in the nearest cache.
// Trick:  the sums of one segment lie in a dense row of latents that stays in the second-level cache, so that
//         an entry costs one addition and nothing is sorted: reading the row out gives the columns in order.
//         One mark per 64 latents says which parts have to be read out and cleared.
//
// Entries are added in their order in float32, each segment by one thread: the number of threads changes no
// bits. Zeros are left out; NaN is not zero. The row takes 4 bytes per latent and thread (8 for max and count).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "sparse_kernels.h"

namespace saerl {

enum class Pooling { sum, mean, max, count };

// Segment s owns the entries starts[s] .. stops[s] of `columns` and `values`, which come from tokens[s] tokens.
struct Segments {
    const int64_t* starts;   // IN  [segments]
    const int64_t* stops;    // IN  [segments]
    const int64_t* tokens;   // IN  [segments]
    const int32_t* columns;  // IN  [entries], each in 0..latents-1
    const float* values;     // IN  [entries]
    int64_t segments;
    int64_t entries;
    int64_t latents;
};

// An array of entries that grows.
class Entries {
  public:
    int64_t size() const { return size_; }
    const int32_t* columns() const { return columns_.get(); }
    const float* values() const { return values_.get(); }
    int32_t* next_columns() { return columns_.get() + size_; }
    float* next_values() { return values_.get() + size_; }
    void make_room(int64_t more);
    void advance(int64_t written) { size_ += written; }

  private:
    std::unique_ptr<int32_t[]> columns_;
    std::unique_ptr<float[]> values_;
    int64_t size_ = 0;
    int64_t room_ = 0;
};

// Pools at once and keeps the result until it is written: its size is known only afterwards.
class SegmentPool {
  public:
    SegmentPool(const Segments& segments, Pooling pooling, const SparseKernels& kernels, int64_t threads);

    int64_t segments() const { return static_cast<int64_t>(counts_.size()); }
    int64_t entries() const;
    void write(int64_t* indptr,   // OUT [segments + 1]
               int32_t* columns,  // OUT [entries]
               float* values,     // OUT [entries]
               int64_t threads) const;

  private:
    std::vector<int64_t> counts_;  // entries of each segment
    std::vector<Entries> parts_;   // of consecutive segments, one part per thread
};

}  // namespace saerl
