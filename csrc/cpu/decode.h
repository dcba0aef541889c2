// Sparse rows back to dense ones.
//
//     out_i = b + sum over the entries e of row i of values[e] * table[columns[e]]
//     dots[e] = x_i . table[columns[e]]                              (the gradient of out with respect to values)
//
// Floor:  reading the gathered rows of the table: entries x width x 4 bytes. Frequent latents stay in the caches.
// Trick:  a row of `out` stays in the first-level cache while the rows of the table stream past, four at a time.
//
// Entries are added in their order, each row by one thread: the number of threads changes no bits. The gradient of the
// table is the same sum over the transposed rows, so it needs no atomics either.
#pragma once

#include <cstdint>

#include "decode_kernels.h"
#include "sparse_product.h"

namespace saerl {

// Rows of `latents` columns each; entries may be in any order and occur twice.
void decode(const SparseRows& rows,
            const float* table,  // IN  [latents, width]
            const float* b,      // IN  [width] or null
            int64_t width, const DecodeKernels& kernels, int64_t threads,
            float* out);  // OUT [rows, width]

void decode_dots(const SparseRows& rows,  // values are not read
                 const float* x,          // IN  [rows, width]
                 const float* table,      // IN  [latents, width]
                 int64_t width, const DecodeKernels& kernels, int64_t threads,
                 float* dots);  // OUT [entries]

}  // namespace saerl
