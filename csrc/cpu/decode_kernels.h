// The inner loops of decode for each instruction set (decode_loops.h).
#pragma once

#include <cstdint>

namespace saerl {

struct DecodeKernels {
    void (*add_scaled)(const float* const* rows, const float* values, int64_t count, int64_t width,
                       float* out);
    float (*dot_product)(const float* x, const float* y, int64_t width);
};

extern const DecodeKernels kPlainDecode;
#if defined(__x86_64__)
extern const DecodeKernels kAvx2Decode;
extern const DecodeKernels kAvx512Decode;
#endif

}  // namespace saerl
