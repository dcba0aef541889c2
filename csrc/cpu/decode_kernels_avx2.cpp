// AVX2 body of the loops of decode. Compiled with -mavx2 -mfma, called only where both exist.
#if defined(__x86_64__)

#include "decode_kernels.h"
#include "decode_loops.h"

namespace saerl {

const DecodeKernels kAvx2Decode = {add_scaled, dot_product};

}  // namespace saerl

#endif
