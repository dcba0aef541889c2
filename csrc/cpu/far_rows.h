// Rows far from each other, for k-means to start from: k-means++ (Arthur and Vassilvitskii, 2007), greedy.
//
//     of a few rows, drawn with a chance in proportion to their squared distance from the seeds so far, the one that
//     leaves the least total of such distances is the next seed
//
// Floor:  the products of all rows with the rows drawn.
// Trick:  all rows are packed into panels once, as if they were centroids; the few rows drawn are the group that shares
//         every load of a panel (dense_product.h).
//
// The draws are the caller's, and totals are added up in row order: neither threads nor blocks change what is chosen.
#pragma once

#include <cstdint>

#include "dense_kernels.h"

namespace saerl {

// Returns how many were chosen: fewer than `clusters` where no row is left that differs from all of them.
int64_t far_rows(const float* rows,        // IN  [count, latents]
                 const uint8_t* may_seed,  // IN  [count], whether a row can be a seed
                 int64_t count, int64_t latents,
                 const double* draws,  // IN  [clusters, trials], each in [0, 1)
                 int64_t clusters, int64_t trials, const DenseKernels& kernels, int64_t threads,
                 int64_t* chosen);  // OUT [clusters], different rows

}  // namespace saerl
