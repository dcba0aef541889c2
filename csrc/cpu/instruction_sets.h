// Which inner loops this machine can run; decided when the program runs, not when it is built.
#pragma once

#include <string>
#include <vector>

#include "row_kernels.h"
#include "sparse_kernels.h"

namespace saerl {

// Best first; "plain" is always the last.
std::vector<const RowKernels*> available_row_kernels();

// By name ("avx512", "avx2", "plain"), or the best for "auto". Throws std::invalid_argument for any other
// name, also where the machine lacks the instruction set.
const RowKernels& row_kernels(const std::string& name);

// The loops on sparse rows for the same instruction set.
const SparseKernels& sparse_kernels(const std::string& name);

}  // namespace saerl
