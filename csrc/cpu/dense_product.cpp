#include "dense_product.h"

#include <algorithm>

#include "lines.h"
#include "threads.h"

namespace saerl {
namespace {

constexpr int64_t kGroup = DenseKernels::kGroup;
constexpr int64_t kRowBlock = 8 * kGroup;  // with a panel of 64 columns, 12 KB of totals
constexpr int64_t kStretchNumbers = 8192;  // of a panel: 32 KB, two thirds of a first-level cache

// totals [count, width] of the rows first .. first + count with one panel
void multiply(const DenseRows& rows, int64_t first, int64_t count, const float* panel, int64_t width,
              const DenseKernels& kernels, float* totals) {
    const int64_t stretch = kStretchNumbers / width;
    std::fill_n(totals, kRowBlock * width, 0.0f);
    for (int64_t from = 0; from < rows.latents; from += stretch) {
        const int64_t latents = std::min(stretch, rows.latents - from);
        for (int64_t group = 0; group < count; group += kGroup) {
            const float* members[kGroup];
            for (int64_t i = 0; i < kGroup; ++i) {
                // the last row stands in where a group is not full
                const int64_t row = first + std::min(group + i, count - 1);
                members[i] = rows.values + row * rows.stride + from;
            }
            kernels.accumulate(members, latents, panel + from * width, width, totals + group * width);
        }
    }
}

}  // namespace

void nearest_centroid(const DenseRows& rows, const Centroids& centroids, const DenseKernels& kernels,
                      int64_t threads, int32_t* labels, float* scores) {
    const Panels panels = centroids.panels();
    const int64_t width = panels.width;
    for_row_ranges(rows.rows, threads, [&](int64_t begin, int64_t end) {
        Lines<float> totals(kRowBlock * width);
        for (int64_t first = begin; first < end; first += kRowBlock) {
            const int64_t count = std::min(kRowBlock, end - first);
            Nearest nearest[kRowBlock];
            std::fill_n(nearest, count, none_yet());
            for (int64_t panel = 0; panel < panels.count(); ++panel) {
                const float* numbers = panels.numbers + panel * rows.latents * width;
                multiply(rows, first, count, numbers, width, kernels, totals.data());
                for (int64_t i = 0; i < count; ++i) {
                    kernels.look_at(&totals[i * width], centroids.bias() + panel * width, centroids.factor(),
                                    panel * width, width, nearest[i]);
                }
            }
            for (int64_t i = 0; i < count; ++i) {
                const float* row = rows.values + (first + i) * rows.stride;
                labels[first + i] = nearest[i].label;
                scores[first + i] = centroids.score(nearest[i], kernels.sum_of_squares(row, rows.latents));
            }
        }
    });
}

}  // namespace saerl
