// Large scores of each row from int8 products, exactly: what is left out is proved out.
//
//     score(i, j) = scale[j] * (sum over c of (x[i][c] - shift[c]) * w[j][c] + bias[j])     in float64
//
// Floor:  the int8 product, a tenth to a quarter of the float32 one; then one float64 dot per score that is kept.
// Trick:  a product of rounded vectors bounds the score: with y = step q + dy and v = step' p + dv,
//         |y.v - step step' q.p| <= |dy| |step' p| + |y| |dv|   (Cauchy-Schwarz).
//         While products come in blocks of columns, a row keeps the columns whose upper bound reaches a floor. Those
//         are scored in float32, which gives bounds of the same kind, a thousand times as tight; what still reaches
//         the floor is scored in float64. Which floor: screened_topk.h, screened_threshold.h.
//
// Scores are float64 sums in one fixed order, so a value depends on its row and its latent alone: not on the
// batch, the number of threads, the instruction set or the bounds. A row that cannot be screened, or keeps more than
// `limit` columns, is scored whole too: all latents in float32, the rest as above. Every score is checked against the
// bounds before it: one outside of them is counted and means that the products were wrong.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "screen_kernels.h"

namespace saerl {

// The terms of the bounds of all columns (ProductRow).
struct ColumnTerms {
    const float* scale;  // IN  [latents]
    const float* reach;  // IN  [latents]
    const float* error;  // IN  [latents]
    const float* low;    // IN  [latents]
    const float* high;   // IN  [latents]
};

// The terms of the rows; a row whose step is NaN cannot be screened.
struct RowTerms {
    const float* step;    // IN  [rows]
    const float* spread;  // IN  [rows]
    const float* size;    // IN  [rows]  infinite for rows that cannot be screened
};

// What exact scores are computed from.
struct Encoder {
    const float* x;            // IN  [rows, width]
    const double* shift;       // IN  [width]
    const float* float_shift;  // IN  [width]  the same numbers
    const float* w;            // IN  [latents, width]
    const float* bias;         // IN  [latents]
    const float* scale;        // IN  [latents] or null
    int64_t width;
    int64_t latents;
};

// What happened, for reports and tests.
struct ScreenCounts {
    int64_t whole = 0;    // rows scored whole
    int64_t sieved = 0;   // pairs scored in float32, in the other rows
    int64_t scored = 0;   // pairs scored in float64, in the other rows
    int64_t outside = 0;  // of both, outside of their bounds: the products were wrong
    double worst = 0;     // largest distance of a score from the middle of its first bounds, in half widths
};

class Rescoring;
template <typename Number>
struct Wanted;

// What the screens have in common: rows of columns that were not ruled out, and how these are settled.
class Screen {
  public:
    virtual ~Screen() = default;

    // Begin with the next rows, none of whose columns were seen.
    virtual void start(int64_t rows, const ColumnTerms& columns, const RowTerms& terms);

    // Take the next columns: products [rows, width], columns side by side.
    void absorb(const int32_t* products, int64_t width, int64_t threads);

    int64_t rows() const { return rows_; }
    int64_t columns_seen() const { return columns_seen_; }

  protected:
    // Columns in memory of their own that grows.
    struct Row : Found {
        Row() : Found{} {}

        std::unique_ptr<float[]> bounds;
        std::unique_ptr<int32_t[]> numbers;
        float floor = 0;  // columns whose upper bound is below it were left out
        bool whole = false;

        void start(float first_floor);
        void grow(int64_t least_room);
        void keep_all(int64_t latents);  // with bounds that say nothing; not `whole` any more
    };

    // first_floor: of every row   trust: as in ProductRow
    Screen(float first_floor, int64_t limit, float trust, const ScreenKernels& kernels);

    // Called before the first columns are taken: raise the floor, if that can be done.
    virtual void look_ahead(Row&, const ProductRow&, int64_t) const {}
    // Called when a row has no room for the columns of one step: rule out some, if that can be done.
    virtual void make_room(Row& row) const = 0;
    // Rule out what can be by the bounds of the products, once all are there.
    virtual void screen(Row& row) const = 0;
    // The bounds are proved and tight now: rule out the rest, or set `whole`.
    virtual void settle(Row& row) const = 0;
    // These columns are all that may be kept; scores [row.count].
    virtual void take(int64_t i, const Row& row, const double* scores) = 0;
    // What a score is compared with beforehand.
    virtual double offset(int32_t) const { return 0; }

    // by_bounds [rows] or null: whether each row was settled without being scored whole.
    ScreenCounts finish_rows(const Encoder& encoder, bool* by_bounds, int64_t threads);

    float first_floor_;
    int64_t limit_;
    float trust_;
    const ScreenKernels& kernels_;
    ColumnTerms terms_ = {};
    RowTerms row_terms_ = {};
    int64_t columns_seen_ = 0;

  private:
    void absorb_row(Row& row, const ProductRow& products, int64_t width) const;
    void make_or_find_room(Row& row) const;
    std::vector<int64_t> rows_that_are(bool whole, int64_t begin, int64_t end) const;
    // `settle` may make some of these rows whole: they are not taken.
    void finish_some(const std::vector<int64_t>& some, const Rescoring& rescoring,
                     std::vector<ScreenCounts>& counts);
    template <typename Number>
    std::vector<Wanted<Number>> wanted_of(const std::vector<int64_t>& some,
                                          std::unique_ptr<Number[]>& numbers) const;

    std::vector<Row> all_;
    int64_t rows_ = 0;
};

}  // namespace saerl
