// Which inner loops this machine can run; decided when the program runs, not when it is built.
#pragma once

#include <string>
#include <vector>

#include "decode_kernels.h"
#include "dense_kernels.h"
#include "row_kernels.h"
#include "screen_kernels.h"
#include "sparse_kernels.h"

namespace saerl {

// Best first; "plain" is always the last.
std::vector<const RowKernels*> available_row_kernels();

// By name ("avx512", "avx2", "plain"), or the best for "auto". Throws std::invalid_argument for any other
// name, also where the machine lacks the instruction set.
const RowKernels& row_kernels(const std::string& name);

// The loops on sparse rows for the same instruction set.
const SparseKernels& sparse_kernels(const std::string& name);

// The loops on dense rows for the same instruction set.
const DenseKernels& dense_kernels(const std::string& name);

// The loops of decode for the same instruction set.
const DecodeKernels& decode_kernels(const std::string& name);

// The loops of int8 screening; a machine without AVX-512 runs the plain ones.
const ScreenKernels& screen_kernels(const std::string& name);

// Why torch's int8 product is not an exact one on this processor, or an empty string: it needs the instructions
// that add four products of bytes without an intermediate 16-bit sum, which would saturate.
std::string int8_product_refused();

}  // namespace saerl
