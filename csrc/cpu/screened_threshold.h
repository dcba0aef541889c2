// All scores of each row that are above a threshold per column, by int8 screening (screening.h).
//
//     row i keeps every j with score(i, j) > bound[j], compared in float64, whose value in float32 is above 0
//
// Floor: the bounds are part of the terms of the columns (`low` and `high` are those of score - bound), so a column is
// left out where its upper bound is below 0.
//
// A row with a NaN keeps one entry: column 0, value NaN.
#pragma once

#include <cstdint>

#include "kept_rows.h"
#include "screening.h"

namespace saerl {

class ScreenedThreshold : public Screen {
  public:
    ScreenedThreshold(int64_t limit, float trust, const ScreenKernels& kernels);

    void start(int64_t rows, const ColumnTerms& columns, const RowTerms& terms) override;
    // Settle what each row keeps; bound: IN [latents], none of them NaN or below 0.
    ScreenCounts finish(const Encoder& encoder, const double* bound, int64_t threads);

    const KeptRows& kept() const { return kept_; }

  private:
    void make_room(Row&) const override {}
    void screen(Row&) const override {}
    void settle(Row& row) const override { kernels_.drop_below(0, row); }
    void take(int64_t i, const Row& row, const double* scores) override;
    double offset(int32_t column) const override { return bound_[column]; }

    KeptRows kept_{0};
    const double* bound_ = nullptr;
};

}  // namespace saerl
