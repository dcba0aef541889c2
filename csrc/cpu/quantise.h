// Rows as int8, with what rounding did to them.
//
//     y = rotated((x - shift) * factor) = step * q + dy,   step = max |y| / 127     (screen_kernels.h, Channels)
//
// Floor:  reading x once.
#pragma once

#include <cstdint>

#include "screen_kernels.h"

namespace saerl {

struct FloatRows {
    const float* x;  // IN  [rows, channels.width]
    int64_t rows;
    Channels channels;
};

struct Int8Rows {
    int8_t* q;       // OUT [rows, stride]
    int64_t stride;  // rotated_width
    float* steps;    // OUT [rows]; NaN where the row cannot be screened (Quantised)
    double* norms;   // OUT [rows]  |y|
    double* errors;  // OUT [rows]  |dy|
};

void quantise_rows(const FloatRows& rows, const ScreenKernels& kernels, int64_t threads, const Int8Rows& out);

}  // namespace saerl
