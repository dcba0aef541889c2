#include "survey.h"

#include <algorithm>
#include <mutex>
#include <vector>

#include "threads.h"

namespace saerl {
namespace {

constexpr int64_t kRowsCounted = int64_t{1} << 24;  // at a time, in 32 bits: more counters fit into the cache

// Raises the counts of one row; false where its columns are not ascending or lie outside.
bool count_row(const Row& row, int64_t latents, const SparseKernels& kernels, Survey& found,
               std::vector<int32_t>& counts) {
    if (row.entries == 0) return true;
    const uint32_t seen = kernels.glance(row.columns, row.values, row.entries);
    if (seen & SparseKernels::kFalls || row.columns[0] < 0 || row.columns[row.entries - 1] >= latents)
        return false;
    found.finite &= !(seen & SparseKernels::kNotFinite);
    if (seen & SparseKernels::kZero) {
        found.zeros = true;
        for (int64_t e = 0; e < row.entries; ++e) counts[row.columns[e]] += row.values[e] != 0;
    } else {
        for (int64_t e = 0; e < row.entries; ++e) ++counts[row.columns[e]];
    }
    return true;
}

}  // namespace

Survey survey(const SparseRows& rows, const SparseKernels& kernels, int64_t threads, int64_t* having) {
    Survey all;
    std::mutex lock;
    std::fill_n(having, rows.latents, 0);
    for_row_ranges(rows.rows, threads, [&](int64_t begin, int64_t end) {
        Survey found;
        std::vector<int32_t> counts(static_cast<size_t>(rows.latents));
        for (int64_t first = begin; first < end && found.ascending; first += kRowsCounted) {
            const int64_t last = std::min(first + kRowsCounted, end);
            for (int64_t i = first; i < last && found.ascending; ++i) {
                found.ascending = count_row(rows.row(i), rows.latents, kernels, found, counts);
            }
            const std::lock_guard<std::mutex> held(lock);
            for (int64_t j = 0; j < rows.latents; ++j) having[j] += counts[j];
            std::fill(counts.begin(), counts.end(), 0);
        }
        const std::lock_guard<std::mutex> held(lock);
        all.ascending &= found.ascending;
        all.finite &= found.finite;
        all.zeros |= found.zeros;
    });
    return all;
}

}  // namespace saerl
