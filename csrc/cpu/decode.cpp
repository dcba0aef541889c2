#include "decode.h"

#include <algorithm>

#include "decode_loops.h"
#include "threads.h"

namespace saerl {

void decode(const SparseRows& rows, const float* table, const float* b, int64_t width,
            const DecodeKernels& kernels, int64_t threads, float* out) {
    for_row_ranges(rows.rows, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const Row row = rows.row(i);
            float* sum = out + i * width;
            std::fill_n(sum, width, 0.0f);
            for (int64_t e = 0; e < row.entries; e += kDecodeRows) {
                const int64_t count = std::min(kDecodeRows, row.entries - e);
                const float* gathered[kDecodeRows];
                for (int64_t k = 0; k < count; ++k) gathered[k] = table + row.columns[e + k] * width;
                kernels.add_scaled(gathered, row.values + e, count, width, sum);
            }
            if (b) {
                for (int64_t j = 0; j < width; ++j) sum[j] += b[j];
            }
        }
    });
}

void decode_dots(const SparseRows& rows, const float* x, const float* table, int64_t width,
                 const DecodeKernels& kernels, int64_t threads, float* dots) {
    for_row_ranges(rows.rows, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            for (int64_t e = rows.indptr[i]; e < rows.indptr[i + 1]; ++e) {
                dots[e] = kernels.dot_product(x + i * width, table + rows.columns[e] * width, width);
            }
        }
    });
}

}  // namespace saerl
