// All scores of each row that are above a threshold per column, by int8 screening (screening.h).
//
//     row i keeps every j with score(i, j) > bound[j], compared in float64, whose value in float32 is above 0
//
// Floor while products come: the bounds are part of the terms of the columns (`low` and `high` are those of
// score - bound), so a column is left out where its upper bound is below 0. What is likely to be above its bound is
// scored in float64 at once.
//
// A row with a NaN keeps one entry: column 0, value NaN.
#pragma once

#include <cstdint>
#include <vector>

#include "kept_rows.h"
#include "screening.h"

namespace saerl {

class ScreenedThreshold : public Screen {
  public:
    ScreenedThreshold(int64_t rows, int64_t limit, const ScreenKernels& kernels);

    // Settle what each row keeps; bound: IN [latents], none of them NaN or below 0.
    ScreenCounts finish(const Encoder& encoder, const double* bound, int64_t threads);

    const KeptRows& kept() const { return kept_; }

  private:
    void make_room(Row& row) const override { resize(row, row.held); }
    void choose(Row& row, const double* bound) const;
    void keep(int64_t i, const std::vector<Candidate>& candidates, const double* bound);

    KeptRows kept_;
};

}  // namespace saerl
