#include "row_sample.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "threads.h"

namespace saerl {

void unit_sample(const SparseRows& rows, const int64_t* chosen, int64_t count, const float* weights,
                 bool root, const SparseKernels& kernels, int64_t threads, const int64_t* starts,
                 int32_t* columns, float* values) {
    for_row_ranges(count, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const Row row = rows.row(chosen[i]);
            float* place = values + starts[i];
            std::copy_n(row.columns, row.entries, columns + starts[i]);
            if (root) {
                kernels.root(row.values, row.entries, place);
            } else {
                std::copy_n(row.values, row.entries, place);
            }
            const double length =
                std::sqrt(kernels.weighted_squares(row.columns, place, row.entries, weights));
            // of a row of zeros the values are zeros
            const float factor = length == 0 ? 1.0f : static_cast<float>(1 / length);
            for (int64_t e = 0; e < row.entries; ++e) place[e] *= factor;
        }
    });
}

void transpose(const SparseRows& rows, int64_t* starts, int32_t* places, float* values) {
    std::vector<int64_t> next(static_cast<size_t>(rows.latents) + 1);
    const int64_t from = rows.indptr[0], to = rows.indptr[rows.rows];
    for (int64_t e = from; e < to; ++e) ++next[rows.columns[e] + 1];
    for (int64_t j = 0; j < rows.latents; ++j) next[j + 1] += next[j];
    std::copy(next.begin(), next.end(), starts);
    for (int64_t i = 0; i < rows.rows; ++i) {
        const Row row = rows.row(i);
        for (int64_t e = 0; e < row.entries; ++e) {
            const int64_t place = next[row.columns[e]]++;
            places[place] = static_cast<int32_t>(i);
            values[place] = row.values[e];
        }
    }
}

}  // namespace saerl
