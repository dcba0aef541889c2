// Plain C++ body of the loops of decode.
#include "decode_kernels.h"
#include "decode_loops.h"

namespace saerl {

const DecodeKernels kPlainDecode = {add_scaled, dot_product};

}  // namespace saerl
