// The nearest centroid of dense rows.
//
//     label = argmin_k bias[k] + factor * (x . c_k)
//
// Floor:  two operations per row, latent and centroid. A BLAS product writes the [S, K] array besides, and reads it
//         again for the argmin.
// Trick:  the centroids are packed into panels of up to 64 columns (panels.h). A group of six rows shares
//         every load of a panel and keeps its totals in registers; a panel is walked in stretches of latents that
//         fit into the first-level cache. Distances are compared as soon as a panel is done: no [S, K] array exists.
//
// Each total is added up in the order of the latents: neither threads nor groups change its bits.
#pragma once

#include <cstdint>

#include "centroids.h"
#include "dense_kernels.h"

namespace saerl {

struct DenseRows {
    const float* values;  // IN  [rows, latents], rows `stride` apart
    int64_t rows;
    int64_t latents;
    int64_t stride;
};

void nearest_centroid(const DenseRows& rows, const Centroids& centroids, const DenseKernels& kernels,
                      int64_t threads,
                      int32_t* labels,  // OUT [rows]
                      float* scores);   // OUT [rows]

}  // namespace saerl
