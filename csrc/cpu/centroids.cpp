#include "centroids.h"

#include <algorithm>
#include <cmath>

#include "sparse_kernels.h"

namespace saerl {
namespace {

constexpr double kSmallestNorm = 1e-12;  // a shorter row has cosine 0
constexpr int64_t kTile = 16;            // latents that are turned at a time: their panel stays in the cache

int64_t panel_width(int64_t columns) {
    const int64_t steps = (columns + SparseKernels::kPanelStep - 1) / SparseKernels::kPanelStep;
    return std::min(SparseKernels::kPanel, std::max<int64_t>(steps, 1) * SparseKernels::kPanelStep);
}

}  // namespace

double sum_of_squares(const float* x, int64_t count) {
    constexpr int64_t kLanes = 8;
    double lanes[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        for (int64_t lane = 0; lane < kLanes; ++lane) {
            const double value = x[i + lane];
            lanes[lane] += value * value;
        }
    }
    for (; i < count; ++i) lanes[0] += static_cast<double>(x[i]) * x[i];
    double sum = 0;
    for (const double lane : lanes) sum += lane;
    return sum;
}

Centroids::Centroids(const float* rows, int64_t clusters, int64_t latents, Metric metric)
    : metric_(metric), clusters_(clusters), width_(panel_width(clusters)) {
    const int64_t filled = panels().count() * width_;
    numbers_ = Lines<float>(filled * latents);
    bias_.assign(static_cast<size_t>(filled), __builtin_inff());
    pack(rows, latents);
    for (int64_t k = 0; k < clusters; ++k) {
        const double squares = sum_of_squares(rows + k * latents, latents);
        // the square of a finite float is far inside float64
        const double bias = metric == Metric::euclidean ? squares : 0;
        bias_[k] = std::isfinite(squares) ? static_cast<float>(bias) : __builtin_nanf("");
        if (metric == Metric::euclidean) continue;
        const auto unit = static_cast<float>(1 / std::max(std::sqrt(squares), kSmallestNorm));
        float* column = &numbers_[k / width_ * latents * width_ + k % width_];
        for (int64_t j = 0; j < latents; ++j) column[j * width_] *= unit;
    }
}

void Centroids::pack(const float* rows, int64_t latents) {
    for (int64_t panel = 0; panel < panels().count(); ++panel) {
        const int64_t first = panel * width_, count = std::min(width_, clusters_ - first);
        float* numbers = &numbers_[first * latents];
        for (int64_t tile = 0; tile < latents; tile += kTile) {
            const int64_t end = std::min(tile + kTile, latents);
            for (int64_t c = 0; c < count; ++c) {
                for (int64_t j = tile; j < end; ++j)
                    numbers[j * width_ + c] = rows[(first + c) * latents + j];
            }
        }
    }
}

float Centroids::score(const Nearest& nearest, double squares) const {
    const double found = metric_ == Metric::euclidean
                             ? nearest.result() + squares
                             : 1 + nearest.result() / std::max(std::sqrt(squares), kSmallestNorm);
    return found < 0 ? 0 : static_cast<float>(found);  // NaN stays
}

}  // namespace saerl
