// One look at every entry of sparse rows: whether they are what they should be, and how many rows have each column.
//
//     having[j] = rows i with x_ij != 0
//
// Floor:  eight bytes read per entry, one count raised.
// Trick:  a row whose columns rise needs its first and last one compared with the width, no other. Order, finiteness
//         and zeros are looked at in vectors while the row is in the first-level cache, and it is counted from there.
//
// Counts are whole numbers: the number of threads changes none.
#pragma once

#include <cstdint>

#include "sparse_kernels.h"
#include "sparse_product.h"

namespace saerl {

struct Survey {
    bool ascending =
        true;            // within each row, none twice, each in 0..latents-1; else `having` is not complete
    bool finite = true;  // of rows whose columns are ascending
    bool zeros = false;  // a zero is stored
};

Survey survey(const SparseRows& rows, const SparseKernels& kernels, int64_t threads,
              int64_t* having);  // OUT [latents]

}  // namespace saerl
