// The inner loops of int8 screening. Files compiled for a newer instruction set hold these functions and nothing
// else (row_kernels.h says why). What rounds differently in the last bit from one instruction set to another is
// bounds, which allow for it; `dots` gives the same bits on all of them.
#pragma once

#include <cstdint>

namespace saerl {

// How the numbers of a row become y: z[c] = (x[c] - shift[c]) * factor[c], zeros up to a multiple of kRotated, and
// each kRotated of these multiplied by a Hadamard matrix over its root: a rotation, so that it changes no product of
// two rows. It spreads large numbers over their neighbours, and one step for the row fits all of them.
struct Channels {
    const double* shift;   // IN  [width]
    const double* factor;  // IN  [width]
    int64_t width;
};
constexpr int64_t kRotated = 64;
static inline int64_t rotated_width(int64_t width) {
    return (width + kRotated - 1) / kRotated * kRotated;
}

// y is about step * q. `step` is 0 for a row of zeros and NaN where the row cannot be screened: a number that is
// not finite, or a size outside of [kLeast, kMost], beyond which float32 arithmetic might leave its range.
struct Quantised {
    static constexpr double kLeast = 0x1p-30;
    static constexpr double kMost = 0x1p+30;

    float step;
    double norm;   // |y|
    double error;  // |y - step * q|
};

// One row of int8 products, or a stretch of it. The score of product j is within spread_j of middle_j, a little more
// for the bias:
//     middle_j = step * scale[j] * products[j],   spread_j = spread * reach[j] + size * error[j]
//     upper_j = middle_j + spread_j + high[j]           the score is not above it: proved
//     lower_j = middle_j - trust * spread_j + low[j]    the score is seldom below it: to be checked
struct ProductRow {
    const int32_t* products;  // IN  [width]
    const float* scale;       // IN  [width]
    const float* reach;       // IN  [width]
    const float* error;       // IN  [width]
    const float* low;         // IN  [width]
    const float* high;        // IN  [width]
    float step;
    float spread;
    float size;
    float trust;
};

// Columns of a row that were not ruled out, ascending, and what is known of their scores.
struct Found {
    static constexpr int64_t kWidestStep = 64;  // columns that one step of a kernel may write beyond `count`

    float* lower;      // [room]
    float* upper;      // [room]
    int32_t* columns;  // [room]
    int64_t count;
    int64_t room;
};

// static, so that no copy compiled for a newer instruction set leaves its file
static inline bool full(const Found& found) {
    return found.count > found.room - Found::kWidestStep;
}

// Rows of w that are to be multiplied by one row of activations.
struct Chosen {
    const float* w;  // IN  [latents, width]
    int64_t width;
    const int32_t* columns;  // IN  [count]
    int64_t count;
};

// Float32 dots of a row become bounds: score j is within size * reach[j] of scale[j] * dot, a little more for the
// bias.
struct FloatDots {
    const float* dots;   // IN  [count]
    const float* scale;  // IN  [latents] or null
    const float* reach;  // IN  [latents]
    const float* low;    // IN  [latents]
    const float* high;   // IN  [latents]
    float size;          // with float_dot_error in it
    float trust;         // as in ProductRow
};

// Bounds held against bounds.
struct Agreement {
    int64_t outside;  // columns whose new bounds do not meet the old ones: the products were wrong
    float worst;  // largest distance of a score from the middle of its old bounds, at least, in half widths
};

struct ScreenKernels {
    const char* name;

    // y: scratch [rotated_width]   q: OUT [rotated_width]
    Quantised (*quantise)(const float* x, const Channels& channels, double* y, int8_t* q);

    // maxima[g] = the largest lower bound among columns g, g + groups and so on of [0, width), but for a few at the end.
    // maxima: OUT [groups], a multiple of 16
    void (*likely_maxima)(const ProductRow& row, int64_t width, int64_t groups, float* maxima);

    // Appends the columns of [begin, end) whose upper bound is not below `floor`, numbered from `first_column` on.
    // Returns the column where it stopped: `end`, or earlier because `found` is full.
    int64_t (*collect)(const ProductRow& row, int64_t begin, int64_t end, float floor, int64_t first_column,
                       Found& found);

    // Leaves out the columns whose upper bound is below `floor`; may write where `found` has room.
    void (*drop_below)(float floor, Found& found);

    // The k-th largest of them (row_loops.h).
    float (*kth_largest)(const float* values, int64_t count, int64_t k, int32_t* scratch);

    // y[c] = x[c] - shift[c]; y: OUT [width, and zeros up to a multiple of kFloatDotLanes]
    void (*centre)(const float* x, const float* shift, int64_t width, float* y);

    // The products of y with the chosen rows, in float32, with kFloatDotLanes partial sums at least.
    void (*float_dots)(const Chosen& chosen, const float* y, float* dots);  // dots: OUT [count]

    // Replaces the bounds of int8 products by those of float32 dots. A bound that is not a number becomes infinite.
    Agreement (*bound_by_dots)(const FloatDots& dots, Found& found);

    // y[c] = x[c] - shift[c] in float64; y: OUT [width]
    void (*widen)(const float* x, const double* shift, int64_t width, double* y);

    // The same products in float64, each always in the order of kDotLanes partial sums.
    void (*dots)(const Chosen& chosen, const double* y, double* dots);  // dots: OUT [count]

    // Places in descending order (row_loops.h).
    void (*rank_scores)(const double* scores, int64_t count, int64_t* ranks);
};

// Number c goes to partial sum c % kDotLanes; at the end the upper half is added to the lower, again and again.
constexpr int64_t kDotLanes = 32;
constexpr int64_t kFloatDotLanes = 16;

// A bound of |float_dots - dots| in units of |x - shift| |w|: two roundings for each number of a partial sum, and
// more than there are for the difference, for adding the partial sums up, for `dots` itself, and for `bound_by_dots`.
// By Cauchy-Schwarz it holds for the lengths of rows whose channels are scaled by reciprocal factors too.
static inline double float_dot_error(int64_t width) {
    return 0x1p-23 * (static_cast<double>(width) / kFloatDotLanes + 24);
}

extern const ScreenKernels kPlainScreen;
#if defined(__x86_64__)
extern const ScreenKernels kAvx512Screen;
#endif

}  // namespace saerl
