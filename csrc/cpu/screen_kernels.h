// The inner loops of int8 screening. Files compiled for a newer instruction set hold these functions and nothing
// else (row_kernels.h says why). `quantise` and the screening loops may round differently in the last bit from
// one instruction set to another, which the certificate allows for; `dot` gives the same bits on all of them.
#pragma once

#include <cstdint>

namespace saerl {

// How the numbers of a row become y[c] = (x[c] - shift[c]) * factor[c]; factors are powers of two, so that the
// product is exact.
struct Channels {
    const double* shift;   // IN  [width]
    const double* factor;  // IN  [width]
    int64_t width;
};

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
//     upper_j = middle_j + spread_j + high[j]            the score is not above it: proved
//     likely_j = middle_j - kTrust * spread_j + low[j]   the score is seldom below it: to be checked
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
};

// Real errors are a tenth of what is proved (the proof takes the worst directions), and about Gaussian.
constexpr float kTrust = 0.25f;

// Columns whose upper bound reached the floor, in their order.
struct Found {
    static constexpr int64_t kWidestStep = 64;  // columns that one step of a kernel may append at once

    float* likely;     // OUT [room]
    float* upper;      // OUT [room]
    int32_t* columns;  // OUT [room]
    int64_t count;
    int64_t room;
};

// static, so that no copy compiled for a newer instruction set leaves its file
static inline bool full(const Found& found) {
    return found.count > found.room - Found::kWidestStep;
}

struct ScreenKernels {
    const char* name;

    Quantised (*quantise)(const float* x, const Channels& channels, int8_t* q);  // q: OUT [width]

    // Appends the columns of [begin, end) whose upper bound is not below `floor`, numbered from `first_column` on.
    // Returns the column where it stopped: `end`, or earlier because `found` is full.
    int64_t (*collect)(const ProductRow& row, int64_t begin, int64_t end, float floor, int64_t first_column,
                       Found& found);

    // The k-th largest of them (row_loops.h).
    float (*kth_largest)(const float* values, int64_t count, int64_t k, int32_t* scratch);

    // The same sum in float32, with kFloatDotLanes partial sums; `next` as in `dot`.
    float (*float_dot)(const float* x, const float* shift, const float* w, int64_t width, const float* next);

    void (*widen)(const float* x, int64_t width, double* wide);  // wide: OUT [width]

    // The sum of (x[c] - shift[c]) * w[c] in float64, always in the order of kDotLanes partial sums.
    // `next` is the row that the next call reads: it is fetched meanwhile.
    double (*dot)(const float* x, const double* shift, const double* w, int64_t width, const float* next);
};

// Number c goes to partial sum c % kDotLanes; at the end the upper half is added to the lower, again and again.
constexpr int64_t kDotLanes = 32;
constexpr int64_t kFloatDotLanes = 64;

// A bound of |float_dot - dot| in units of |x - shift| |w|: two roundings for each number of a partial sum, and
// more than there are for the difference, for adding the partial sums up, and for `dot` itself. By Cauchy-Schwarz it
// holds for the lengths of rows whose channels are scaled by reciprocal factors too.
static inline double float_dot_error(int64_t width) {
    return 0x1p-23 * (static_cast<double>(width) / kFloatDotLanes + 16);
}

extern const ScreenKernels kPlainScreen;
#if defined(__x86_64__)
extern const ScreenKernels kAvx512Screen;
#endif

}  // namespace saerl
