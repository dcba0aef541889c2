// A dense table cut into panels of columns.
#pragma once

#include <cstdint>

namespace saerl {

// table[j][c] lies at numbers[(c / width * latents + j) * width + c % width]; a multiple of
// SparseKernels::kPanelStep wide, filled up with zeros.
struct Panels {
    const float* numbers;  // IN  [panels, latents, width]
    int64_t width;
    int64_t columns;  // W, without the filling
    int64_t count() const { return (columns + width - 1) / width; }
};

}  // namespace saerl
