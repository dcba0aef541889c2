// Large scores of each row from int8 products, exactly: what is left out is proved out.
//
//     score(i, j) = scale[j] * (sum over c of (x[i][c] - shift[c]) * w[j][c] + bias[j])     in float64
//
// Floor:  the int8 product, a tenth to a quarter of the float32 one; then one float64 dot per score that is kept.
// Trick:  a product of rounded vectors bounds the score: with y = step q + dy and v = step' p + dv,
//         |y.v - step step' q.p| <= |dy| |step' p| + |y| |dv|   (Cauchy-Schwarz).
//         While products come in blocks of columns, a row keeps the columns whose upper bound reaches a floor. What
//         is among them is then settled in two steps: scored in float32, which rules out nearly all of the rest by
//         the same kind of bound, and in float64. Which floor: screened_topk.h, screened_threshold.h.
//
// Scores are float64 sums in one fixed order, so a value depends on its row and its latent alone: not on the
// batch, the number of threads, the instruction set or the bounds. Scoring goes latent by latent, so that each row
// of w is read once and x stays in the cache. A row that cannot be screened, or keeps more than `limit` columns, is
// scored whole too: all latents in float32, the rest as above. Every score is checked against its bounds: one
// outside of them is counted and means that the products were wrong.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "screen_kernels.h"

namespace saerl {

// A block of int8 products, columns side by side, with the terms of its bounds (ProductRow).
struct ProductBlock {
    const int32_t* products;  // IN  [rows, width]
    int64_t width;
    const float* scale;  // IN  [width]
    const float* reach;  // IN  [width]
    const float* error;  // IN  [width]
    const float* low;    // IN  [width]
    const float* high;   // IN  [width]
};

// The terms of the rows; a row whose step is NaN cannot be screened.
struct RowTerms {
    const float* step;    // IN  [rows]
    const float* spread;  // IN  [rows]
    const float* size;    // IN  [rows]
};

// What exact scores are computed from.
struct Encoder {
    const float* x;            // IN  [rows, width]
    const double* shift;       // IN  [width]
    const float* float_shift;  // IN  [width]  the same numbers
    const float* w;            // IN  [latents, width]
    const float* bias;         // IN  [latents]
    const float* scale;        // IN  [latents] or null
    const float* size;         // IN  [rows]     as in RowTerms, infinite for rows that cannot be screened
    const float* reach;        // IN  [latents]  as in ProductBlock
    int64_t width;
    int64_t latents;
};

// What happened, for reports and tests.
struct ScreenCounts {
    int64_t whole = 0;    // rows scored whole
    int64_t sieved = 0;   // pairs scored in float32, in the other rows
    int64_t scored = 0;   // pairs scored in float64, in the other rows
    int64_t outside = 0;  // of both, outside of their bounds: the products were wrong
    double worst = 0;     // largest distance of a float64 score from the middle of its bounds, in half widths
};

struct Candidate {
    float likely;
    float upper;
    int32_t column;
    double score;  // in float32 first, where it is sieved
};

// Some candidates of one row.
struct RowCandidates {
    int64_t row;
    Candidate* begin;  // INOUT
    Candidate* end;
};

class Rescoring;

// What the screens have in common: rows of columns that were not ruled out, and how these are settled.
class Screen {
  public:
    virtual ~Screen() = default;

    // Take the next columns; the terms of the rows are the same in every call.
    void absorb(const ProductBlock& block, const RowTerms& terms, int64_t threads);

    int64_t rows() const { return static_cast<int64_t>(rows_.size()); }
    int64_t columns_seen() const { return columns_seen_; }

  protected:
    // What a row keeps while products come: likely, upper and columns, side by side.
    struct Row {
        std::vector<float> likely;
        std::vector<float> upper;
        std::vector<int32_t> columns;
        int64_t held = 0;
        float floor;  // columns whose upper bound is below it were left out
        bool whole = false;
        double proved = 0;  // the k-th largest score is not below it (screened_topk.h)
        std::vector<Candidate>
            candidates;  // made at the end; the first `expected` ones are scored in float64 at once
        int64_t expected = 0;
    };

    Screen(int64_t rows, int64_t limit, float floor, const ScreenKernels& kernels);

    // Called when a row has no room for the columns of one step: make some, or set `whole`.
    virtual void make_room(Row& row) const = 0;
    // Room for half as much again as `used` columns; or none, where the row holds more than `limit`.
    void resize(Row& row, int64_t used) const;
    // Frees what the row kept while products came, once candidates were made of it.
    void close(Row& row) const;

    // body(i, row) for the rows that are not scored whole.
    void for_screened(int64_t threads, const std::function<void(int64_t, Row&)>& body);
    // The first `expected` candidates of each such row, or the others.
    std::vector<RowCandidates> expected();
    std::vector<RowCandidates> others();
    // Leave out of the others of row `i` those whose float32 scores are below floor(column), proved; hold these
    // scores against their bounds too.
    template <typename Floor>
    void sift(Row& row, int64_t i, const Rescoring& rescoring, const Floor& floor,
              ScreenCounts& counts) const;

    std::vector<int64_t> whole_rows() const;
    ScreenCounts total(const std::vector<ScreenCounts>& of_rows) const;

    int64_t limit_;
    const ScreenKernels& kernels_;
    std::vector<Row> rows_;
    int64_t columns_seen_ = 0;

  private:
    void absorb_row(Row& row, const ProductRow& products, int64_t width) const;
};

}  // namespace saerl
