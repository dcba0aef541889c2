// The nearest centroid of dense rows.
//
//     label = argmin_k bias[k] + factor * (x . c_k)
//
// Floor:  two operations per row, latent and centroid. A BLAS product writes the [S, K] array besides, and reads it
//         again for the argmin.
// Trick:  the centroids are packed into panels of up to 64 columns (sparse_product.h). A group of six rows shares
//         every load of a panel and keeps its totals in registers; a panel is walked in stretches of latents that
//         fit into the first-level cache. Distances are compared as soon as a panel is done: no [S, K] array exists.
//
// Each total is added up in the order of the latents: neither threads nor groups change its bits.
#pragma once

#include <cstdint>

#include "dense_kernels.h"
#include "sparse_product.h"

namespace saerl {

struct DenseRows {
    const float* values;  // IN  [rows, latents], rows `stride` apart
    int64_t rows;
    int64_t latents;
    int64_t stride;
};

// One cluster per column of `centroids`.
void nearest_centroid(const DenseRows& rows, const Panels& centroids,
                      const float* bias,  // IN  [panels * width], infinite for the filling
                      float factor, const DenseKernels& kernels, int64_t threads,
                      int32_t* labels,   // OUT [rows]
                      float* distances,  // OUT [rows]
                      double* squares);  // OUT [rows]  |x|^2

}  // namespace saerl
