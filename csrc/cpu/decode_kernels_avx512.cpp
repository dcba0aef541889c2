// AVX-512 body of the loops of decode. Compiled with -mavx512f, called only where it exists.
#if defined(__x86_64__)

#include "decode_kernels.h"
#include "decode_loops.h"

namespace saerl {

const DecodeKernels kAvx512Decode = {add_scaled, dot_product};

}  // namespace saerl

#endif
