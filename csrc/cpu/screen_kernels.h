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

// One row of int8 products, or a stretch of it, and what turns product j into bounds of the score:
//     score in  step * scale[j] * products[j]  -+  (spread * reach[j] + size * error[j])  +  [low[j], high[j]]
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

// Columns whose upper bound reached the floor, in their order.
struct Found {
    static constexpr int64_t kRoom = 256;
    static constexpr int64_t kWidestStep = 64;  // columns that one step of a kernel may append at once

    float lower[kRoom];
    float upper[kRoom];
    int32_t columns[kRoom];
    int64_t count = 0;
};

// static, so that no copy compiled for a newer instruction set leaves its file
static inline bool full(const Found& found) {
    return found.count > Found::kRoom - Found::kWidestStep;
}

struct ScreenKernels {
    const char* name;

    Quantised (*quantise)(const float* x, const Channels& channels, int8_t* q);  // q: OUT [width]

    // maxima[g] = the largest lower bound among the columns g * group .. of [0, width); NaN is passed over.
    // `group` is a multiple of 16.
    void (*lower_maxima)(const ProductRow& row, int64_t width, int64_t group, float* maxima);

    // Appends the columns of [begin, end) whose upper bound is not below `floor` (NaN is not). Returns the column
    // where it stopped: `end`, or earlier because `found` is full.
    int64_t (*collect)(const ProductRow& row, int64_t begin, int64_t end, float floor, Found& found);

    void (*widen)(const float* x, int64_t width, double* wide);  // wide: OUT [width]

    // The sum of (x[c] - shift[c]) * w[c] in float64, always in the order of kDotLanes partial sums.
    double (*dot)(const float* x, const double* shift, const double* w, int64_t width);
};

// Number c goes to partial sum c % kDotLanes; at the end the upper half is added to the lower, again and again.
constexpr int64_t kDotLanes = 32;

extern const ScreenKernels kPlainScreen;
#if defined(__x86_64__)
extern const ScreenKernels kAvx512Screen;
#endif

}  // namespace saerl
