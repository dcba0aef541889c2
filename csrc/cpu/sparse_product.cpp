#include "sparse_product.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "lines.h"
#include "nearest.h"
#include "threads.h"

namespace saerl {
namespace {

constexpr int64_t kRowBlock = 64;
constexpr int64_t kStretchNumbers = 8192;  // of a panel: 32 KB, two thirds of a first-level cache
constexpr int64_t kStretchEntries = 24;    // of one row: fewer, and entering the loop costs more than it does
constexpr int64_t kRowsAhead = 4;
constexpr int64_t kLinesAhead =
    3;  // of 16 entries: what a row has in a stretch, and where it lies in the first

// Latents in a stretch: what fits into the cache, or more where rows are so sparse that it would be too few.
int64_t stretch_length(const SparseRows& rows, int64_t width) {
    const double entries = static_cast<double>(rows.entries()) + 1;
    const double cells = static_cast<double>(rows.rows) * static_cast<double>(rows.latents);
    const double enough = std::min(kStretchEntries * cells / entries, static_cast<double>(rows.latents));
    return std::max<int64_t>(kStretchNumbers / width, static_cast<int64_t>(enough));
}

// A row's next entries come from far away: a block holds more rows than a processor follows by itself.
void fetch(const Row& row, int64_t next) {
    for (int64_t line = 0; line < kLinesAhead; ++line) {
        const int64_t place = std::min(next + line * 16, row.entries);
        __builtin_prefetch(row.columns + place);
        __builtin_prefetch(row.values + place);
    }
}

// Calls visit(row, first column, totals) for each row of [begin, end) and each panel, the panels of one row
// in ascending order. The rows come in blocks: load(first row, count, block) says where the entries of each lie.
template <typename Load, typename Visit>
void for_each_panel(const SparseRows& rows, const Panels& table, const SparseKernels& kernels, int64_t begin,
                    int64_t end, const Load& load, const Visit& visit) {
    const int64_t width = table.width;
    const int64_t stretch = stretch_length(rows, width);
    Lines<float> totals(kRowBlock * width);
    std::vector<int64_t> next(kRowBlock);
    Row block[kRowBlock];
    for (int64_t first = begin; first < end; first += kRowBlock) {
        const int64_t count = std::min(kRowBlock, end - first);
        load(first, count, block);
        for (int64_t panel = 0; panel < table.count(); ++panel) {
            const float* numbers = table.numbers + panel * rows.latents * width;
            std::fill_n(totals.data(), count * width, 0.0f);
            std::fill(next.begin(), next.end(), 0);
            for (int64_t from = 0; from < rows.latents; from += stretch) {
                const auto limit = static_cast<int32_t>(std::min(from + stretch, rows.latents));
                for (int64_t i = 0; i < count; ++i) {
                    const Row& row = block[i];
                    const int64_t ahead = i + kRowsAhead < count ? i + kRowsAhead : (i + kRowsAhead) % count;
                    fetch(block[ahead], next[ahead]);
                    next[i] = kernels.accumulate(row.columns, row.values, next[i], row.entries, limit,
                                                 numbers, width, width, &totals[i * width]);
                }
            }
            for (int64_t i = 0; i < count; ++i) visit(first + i, panel * width, &totals[i * width]);
        }
    }
}

// A `load` that takes the rows as they are.
auto as_they_lie(const SparseRows& rows) {
    return [&rows](int64_t first, int64_t count, Row* block) {
        for (int64_t i = 0; i < count; ++i) block[i] = rows.row(first + i);
    };
}

void look_at(const float* dots, const float* bias, float factor, int64_t first, int64_t count,
             Nearest& nearest) {
    for (int64_t k = 0; k < count; ++k) {
        const float found = bias[first + k] + factor * dots[k];
        nearest.nan |= found != found;
        if (found < nearest.distance) {
            nearest.distance = found;
            nearest.label = static_cast<int32_t>(first + k);
        }
    }
}

}  // namespace

void sparse_product(const SparseRows& rows, const Panels& table, const SparseKernels& kernels,
                    int64_t threads, float* out) {
    for_row_ranges(rows.rows, threads, [&](int64_t begin, int64_t end) {
        const auto write = [&](int64_t row, int64_t first, const float* totals) {
            const int64_t count = std::min(table.width, table.columns - first);
            std::copy_n(totals, count, out + row * table.columns + first);
        };
        for_each_panel(rows, table, kernels, begin, end, as_they_lie(rows), write);
    });
}

void unit_product(const SparseRows& rows, const Panels& table, const float* weights, bool root,
                  const SparseKernels& kernels, int64_t threads, float* out) {
    for_row_ranges(rows.rows, threads, [&](int64_t begin, int64_t end) {
        std::vector<float> roots;  // of the values of a block
        double lengths[kRowBlock];
        const auto load = [&](int64_t first, int64_t count, Row* block) {
            const int64_t from = rows.indptr[first], entries = rows.indptr[first + count] - from;
            if (root) roots.resize(static_cast<size_t>(entries));
            for (int64_t i = 0; i < count; ++i) {
                Row& row = block[i] = rows.row(first + i);
                if (root) {
                    float* place = roots.data() + (rows.indptr[first + i] - from);
                    kernels.root(row.values, row.entries, place);
                    row.values = place;
                }
                lengths[i] =
                    std::sqrt(kernels.weighted_squares(row.columns, row.values, row.entries, weights));
            }
        };
        const auto write = [&](int64_t row, int64_t first, const float* totals) {
            const int64_t count = std::min(table.width, table.columns - first);
            const double length = lengths[(row - begin) % kRowBlock];
            // of a row of zeros the totals are zeros
            const double divisor = length == 0 ? 1 : length;
            float* place = out + row * table.columns + first;
            for (int64_t c = 0; c < count; ++c) place[c] = static_cast<float>(totals[c] / divisor);
        };
        for_each_panel(rows, table, kernels, begin, end, load, write);
    });
}

void nearest_centroid(const SparseRows& rows, const Centroids& centroids, const SparseKernels& kernels,
                      int64_t threads, int32_t* labels, float* scores) {
    const Panels panels = centroids.panels();
    for_row_ranges(rows.rows, threads, [&](int64_t begin, int64_t end) {
        std::vector<Nearest> nearest(static_cast<size_t>(end - begin), none_yet());
        const auto look = [&](int64_t row, int64_t first, const float* totals) {
            const int64_t count = std::min(panels.width, panels.columns - first);
            look_at(totals, centroids.bias(), centroids.factor(), first, count, nearest[row - begin]);
        };
        for_each_panel(rows, panels, kernels, begin, end, as_they_lie(rows), look);
        for (int64_t i = begin; i < end; ++i) {
            const Row row = rows.row(i);
            labels[i] = nearest[i - begin].label;
            scores[i] = centroids.score(nearest[i - begin], sum_of_squares(row.values, row.entries));
        }
    });
}

}  // namespace saerl
