// Rows added up cluster by cluster.
//
//     sums[k] = sum of x_i over the rows i with labels[i] = k,   counts[k] = their number
//
// Floor:  reading each entry once.
// Trick:  sparse rows are listed by cluster first (a counting sort), so that each cluster is one thread's: no two
//         threads write to one place, and its row of sums stays in the cache, in float64. Dense rows are read as
//         they lie, a tile of columns at a time, so narrow that the sums of all clusters stay in the cache; each
//         tile is one thread's.
//
// Added in row order and rounded to float32 once at the end: the number of threads changes no bits.
#pragma once

#include <cstdint>

#include "dense_kernels.h"
#include "sparse_product.h"

namespace saerl {

void cluster_sums_sparse(const SparseRows& rows,
                         const int32_t* labels,  // IN  [rows], each in 0..clusters-1
                         int64_t clusters, int64_t threads,
                         float* sums,       // OUT [clusters, latents]
                         int64_t* counts);  // OUT [clusters]

void cluster_sums_dense(const float* rows,  // IN  [count, width], rows `stride` apart
                        int64_t count, int64_t width, int64_t stride,
                        const int32_t* labels,  // IN  [count], each in 0..clusters-1
                        int64_t clusters, const DenseKernels& kernels, int64_t threads,
                        float* sums,       // OUT [clusters, width]
                        int64_t* counts);  // OUT [clusters]

}  // namespace saerl
