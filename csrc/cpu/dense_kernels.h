// The inner loops of k-means on dense rows: what differs between instruction sets, and nothing else
// (row_kernels.h says why). AVX2 and AVX-512 give the same bits; plain code rounds product and sum apart where
// the machine has no fused multiply-add.
#pragma once

#include <cstdint>

#include "nearest.h"

namespace saerl {

struct DenseKernels {
    // Rows that share each load of a panel. With a panel of 64 columns their totals fill 24 of the 32 AVX-512
    // registers; a wider group would spill.
    static constexpr int64_t kGroup = 6;

    // totals[i * width + c] += rows[i][j] * panel[j * width + c], j ascending, for i < kGroup, 0 <= j < latents and
    // 0 <= c < width; width is 16, 32, 48 or 64. Each total is one chain of additions.
    void (*accumulate)(const float* const* rows, int64_t latents, const float* panel, int64_t width,
                       float* totals);  // INOUT [kGroup, width]

    // Looks at the centroids first .. first + width: their dots with one row, and bias[c].
    void (*look_at)(const float* dots, const float* bias, float factor, int64_t first, int64_t width,
                    Nearest& nearest);  // INOUT

    // |x|^2 in float64, in eight lanes, then lane by lane.
    double (*sum_of_squares)(const float* x, int64_t count);

    // sums[j] += x[j]
    void (*add)(const float* x, int64_t count,
                double* sums);  // INOUT [count]
};

extern const DenseKernels kPlainDense;
#if defined(__x86_64__)
extern const DenseKernels kAvx2Dense;
extern const DenseKernels kAvx512Dense;
#endif

}  // namespace saerl
