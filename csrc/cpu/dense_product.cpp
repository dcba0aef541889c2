#include "dense_product.h"

#include <algorithm>
#include <vector>

#include "threads.h"

namespace saerl {
namespace {

constexpr int64_t kGroup = DenseKernels::kGroup;
constexpr int64_t kRowBlock = 8 * kGroup;  // with a panel of 64 columns, 12 KB of totals
constexpr int64_t kStretchNumbers = 8192;  // of a panel: 32 KB, two thirds of a first-level cache

// totals [count, width] of the rows first .. first + count with one panel
void multiply(const DenseRows& rows, int64_t first, int64_t count, const float* panel, int64_t width,
              const DenseKernels& kernels, std::vector<float>& totals) {
    const int64_t stretch = kStretchNumbers / width;
    std::fill(totals.begin(), totals.end(), 0.0f);
    for (int64_t from = 0; from < rows.latents; from += stretch) {
        const int64_t latents = std::min(stretch, rows.latents - from);
        for (int64_t group = 0; group < count; group += kGroup) {
            const float* members[kGroup];
            for (int64_t i = 0; i < kGroup; ++i) {
                // the last row stands in where a group is not full
                const int64_t row = first + std::min(group + i, count - 1);
                members[i] = rows.values + row * rows.stride + from;
            }
            kernels.accumulate(members, latents, panel + from * width, width, &totals[group * width]);
        }
    }
}

}  // namespace

void nearest_centroid(const DenseRows& rows, const Panels& centroids, const float* bias, float factor,
                      const DenseKernels& kernels, int64_t threads, int32_t* labels, float* distances,
                      double* squares) {
    const int64_t width = centroids.width;
    for_row_ranges(rows.rows, threads, [&](int64_t begin, int64_t end) {
        std::vector<float> totals(static_cast<size_t>(kRowBlock * width));
        for (int64_t first = begin; first < end; first += kRowBlock) {
            const int64_t count = std::min(kRowBlock, end - first);
            Nearest nearest[kRowBlock];
            std::fill_n(nearest, count, none_yet());
            for (int64_t panel = 0; panel < centroids.count(); ++panel) {
                const float* numbers = centroids.numbers + panel * rows.latents * width;
                multiply(rows, first, count, numbers, width, kernels, totals);
                for (int64_t i = 0; i < count; ++i) {
                    kernels.look_at(&totals[i * width], bias + panel * width, factor, panel * width, width,
                                    nearest[i]);
                }
            }
            for (int64_t i = 0; i < count; ++i) {
                labels[first + i] = nearest[i].label;
                distances[first + i] = nearest[i].result();
                squares[first + i] =
                    kernels.sum_of_squares(rows.values + (first + i) * rows.stride, rows.latents);
            }
        }
    });
}

}  // namespace saerl
