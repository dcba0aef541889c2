// The k largest scores of each row, exactly.
//
//     values[i], columns[i] = topk_j score(i, j),   score(i, j) = (scores[i][j] + bias[j]) * scale[j]
//
// Floor:  reading each score once (rows * width * 4 bytes).
// Trick:  cut the row into groups and take the k-th largest *group maximum* t. The k groups that reach t hold
//         k distinct scores >= t, so the k-th largest score is >= t too, and only those groups have to be
//         looked into; about 1.1 k scores pass. (Of a short row the groups are columns that lie apart, whose maxima
//         take no adding up of lanes, and all of it is looked into.) Nothing is bounded by hope: when the candidates outgrow their
//         buffer they are cut back to the best k, which raises the floor, and the scan goes on.
//
// A row may come in several blocks of columns, left to right: a matrix product makes them one by one, and
// each is selected from while it is in the cache.
//
// Descending; ties to the lower column; -0 counts as +0. A row with a NaN gives NaN values and columns
// 0..k-1.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "row_kernels.h"

namespace saerl {

// A matrix of scores in memory; strides in elements.
struct ScoreBlock {
    const float* scores;  // IN  [rows, width]
    int64_t rows;
    int64_t width;
    int64_t row_stride;
    int64_t column_stride;
    const float* bias;     // IN  [width] or null
    const float* scale;    // IN  [width] or null
    int64_t first_column;  // where in the whole row this block begins
};

// What is known of one row so far.
struct RowState {
    uint64_t* keys;  // INOUT  the candidates, columns ascending (pack_keys in row_loops.h)
    int64_t held;    // number of candidates
    float floor;     // a score below it cannot be among the k largest
    bool nan;
};

// The select of one row at a time; one per thread, since it holds scratch memory.
class RowSelect {
  public:
    RowSelect(int64_t k, const RowKernels& kernels) : k_(k), kernels_(kernels) {}

    // keys that a row needs: the k, room for a full buffer of hits, and as much again so that cuts are rare
    static int64_t capacity(int64_t k) { return 4 * k + 2 * Hits::kRoom; }
    static RowState start(uint64_t* keys);

    // Take row `row` of the block.
    void absorb(RowState& state, const ScoreBlock& block, int64_t row);

    // Write the result; the row must have seen k columns at least.
    void finish(RowState& state,
                float* values,     // OUT [k]
                int32_t* columns,  // OUT [k]
                bool relu);        // write max(value, 0)

  private:
    void absorb_stretch(RowState& state, const ScoreRow& stretch, int64_t width, int64_t first_column);
    void set_floor(RowState& state);
    void set_floor_from_stripes(RowState& state, const ScoreRow& stretch, int64_t width, int64_t groups);
    void set_floor_from_groups(RowState& state, const ScoreRow& stretch, int64_t width, int64_t group);
    void scan(RowState& state, const ScoreRow& stretch, int64_t begin, int64_t end, int64_t first_column);
    void hold_hits(RowState& state, int64_t first_column);
    void cut_back(RowState& state);

    int64_t k_;
    const RowKernels& kernels_;
    Hits hits_;
    std::vector<float> maxima_;
    std::vector<int32_t> ordered_;
    std::vector<int64_t> reaching_;  // first columns of the groups whose maximum reaches the floor
    std::vector<float> gathered_;
    std::vector<int64_t> ranks_;
};

// The select of a matrix whose columns come in blocks.
class RunningTopK {
  public:
    RunningTopK(int64_t rows, int64_t k, const RowKernels& kernels);

    void absorb(const ScoreBlock& block, int64_t threads);
    void finish(float* values,     // OUT [rows, k]
                int32_t* columns,  // OUT [rows, k]
                bool relu, int64_t threads);

    int64_t rows() const { return static_cast<int64_t>(rows_.size()); }
    int64_t k() const { return k_; }
    int64_t columns_seen() const { return columns_seen_; }

  private:
    int64_t k_;
    const RowKernels& kernels_;
    std::unique_ptr<uint64_t[]> keys_;  // [rows, capacity]
    std::vector<RowState> rows_;
    int64_t columns_seen_ = 0;
};

// The select of a matrix that is there as a whole.
void topk_select(const ScoreBlock& block, int64_t k, bool relu, const RowKernels& kernels, int64_t threads,
                 float* values,    // OUT [rows, k]
                 int32_t* columns  // OUT [rows, k]
);

}  // namespace saerl
