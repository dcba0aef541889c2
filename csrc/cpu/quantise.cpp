#include "quantise.h"

#include <vector>

#include "threads.h"

namespace saerl {

void quantise_rows(const FloatRows& rows, const ScreenKernels& kernels, int64_t threads,
                   const Int8Rows& out) {
    const int64_t width = rows.channels.width;
    for_row_ranges(rows.rows, threads, [&](int64_t begin, int64_t end) {
        std::vector<double> y(static_cast<size_t>(rotated_width(width)));
        for (int64_t i = begin; i < end; ++i) {
            int8_t* q = out.q + i * out.stride;
            const Quantised row = kernels.quantise(rows.x + i * width, rows.channels, y.data(), q);
            out.steps[i] = row.step;
            out.norms[i] = row.norm;
            out.errors[i] = row.error;
        }
    });
}

}  // namespace saerl
