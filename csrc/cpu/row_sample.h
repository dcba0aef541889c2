// Some of the rows, each divided by the length that it has with its columns weighted, and their transpose.
//
//     out = f(row) / |f(row) * weights|,   f the root of each value or nothing; a row of length zero gives zeros
//
// Floor:  each entry of the rows chosen read once and written once, and read and written once more for the transpose.
// Trick:  roots, lengths and quotients are made row by row, in the first-level cache.
#pragma once

#include <cstdint>

#include "sparse_kernels.h"
#include "sparse_product.h"

namespace saerl {

void unit_sample(const SparseRows& rows, const int64_t* chosen, int64_t count,
                 const float* weights,  // IN  [latents]
                 bool root, const SparseKernels& kernels, int64_t threads,
                 const int64_t* starts,             // IN  [count + 1]: where the entries of each row go
                 int32_t* columns, float* values);  // OUT [starts[count]]

// The entries of each column, in the order of the rows.
void transpose(const SparseRows& rows,
               int64_t* starts,                  // OUT [latents + 1]
               int32_t* places, float* values);  // OUT [entries]

}  // namespace saerl
