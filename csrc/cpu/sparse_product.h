// Sparse rows times a dense table, and the nearest centroid by it.
//
//     out = rows table,   rows [S, M] sparse, table [M, W] dense
//     out = f(rows) table / |f(rows) * weights|,   row by row, f the root of each value or nothing
//     label = argmin_k bias[k] + factor * (x . c_k)
//
// Floor:  two operations per entry and column of the table.
// Trick:  the table is packed into panels of up to 64 columns, whose totals stay in registers, and a panel is
//         walked in stretches of latents that fit into the first-level cache: a block of rows uses each
//         stretch while it is there. Cut so, the product runs at the speed of the arithmetic and not of the
//         memory behind it. Distances are compared as soon as a panel is done: no [S, K] array exists. Roots and
//         lengths are made for a block of rows just before its products: no second array of values exists.
//
// Each total is added up in the order of the row's entries: neither threads nor blocks change its bits.
#pragma once

#include <cstdint>

#include "centroids.h"
#include "panels.h"
#include "sparse_kernels.h"

namespace saerl {

// The entries of one row.
struct Row {
    const int32_t* columns;
    const float* values;
    int64_t entries;
};

struct SparseRows {
    const int64_t* indptr;   // IN  [rows + 1]
    const int32_t* columns;  // IN  [entries], each in 0..latents-1; ascending within a row
    const float* values;     // IN  [entries]
    int64_t rows;
    int64_t latents;

    Row row(int64_t i) const { return {columns + indptr[i], values + indptr[i], indptr[i + 1] - indptr[i]}; }
    int64_t entries() const { return indptr[rows] - indptr[0]; }
};

void sparse_product(const SparseRows& rows, const Panels& table, const SparseKernels& kernels,
                    int64_t threads,
                    float* out);  // OUT [rows, columns]

// A row whose length is zero gives zeros.
void unit_product(const SparseRows& rows, const Panels& table,
                  const float* weights,  // IN  [latents]
                  bool root, const SparseKernels& kernels, int64_t threads,
                  float* out);  // OUT [rows, columns]

void nearest_centroid(const SparseRows& rows, const Centroids& centroids, const SparseKernels& kernels,
                      int64_t threads,
                      int32_t* labels,  // OUT [rows]
                      float* scores);   // OUT [rows]

}  // namespace saerl
