// All scores of each row that are above a threshold per column.
//
//     row i keeps every j with h > theta[j] and h > 0,   h = score(i, j) = (scores[i][j] + bias[j]) * scale[j]
//
// Floor:  reading each score once.
// Trick:  the loop of the top-k select finds all scores above the least threshold, and the few it finds are
//         compared with their own. Each row has a list that grows: nothing is cut, and no mask is made.
//
// A row may come in several blocks of columns, left to right, each selected from while it is in the cache.
// A row with a NaN keeps one entry: column 0, value NaN.
#pragma once

#include <cstdint>
#include <vector>

#include "kept_rows.h"
#include "topk_select.h"

namespace saerl {

class RunningThreshold {
  public:
    RunningThreshold(int64_t rows, const RowKernels& kernels)
        : kernels_(kernels), kept_(rows), spoilt_(static_cast<size_t>(rows)) {}

    // Take the next columns; column_stride is 1.
    void absorb(const ScoreBlock& block,
                const float* theta,  // IN  [width], none of them NaN
                int64_t threads);

    int64_t rows() const { return kept_.rows(); }
    int64_t columns_seen() const { return columns_seen_; }
    const KeptRows& kept() const { return kept_; }

  private:
    void absorb_row(const ScoreBlock& block, int64_t row, const float* theta, float floor, Hits& hits);

    const RowKernels& kernels_;
    KeptRows kept_;
    std::vector<uint8_t> spoilt_;  // rows with a NaN: bytes, which threads may write side by side
    int64_t columns_seen_ = 0;
};

}  // namespace saerl
