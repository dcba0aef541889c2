#include "far_rows.h"

#include <algorithm>
#include <vector>

#include "centroids.h"
#include "lines.h"
#include "threads.h"

namespace saerl {
namespace {

constexpr int64_t kGroup = DenseKernels::kGroup;
constexpr float kRounding = 2e-6f;  // of the squared norms: a smaller squared distance is rounding of float32

// Places of `weights`, each with a chance in proportion to its weight; none where all weights are zero.
std::vector<int64_t> draw(const std::vector<float>& weights, const double* draws, int64_t count) {
    std::vector<double> totals(weights.size());
    double total = 0;
    int64_t last = 0;
    for (size_t i = 0; i < weights.size(); ++i) {
        totals[i] = total += weights[i];
        if (weights[i] != 0) last = static_cast<int64_t>(i);
    }
    std::vector<int64_t> places;
    if (!(total > 0)) return places;
    for (int64_t t = 0; t < count; ++t) {
        const auto found = std::upper_bound(totals.begin(), totals.end(), draws[t] * total);
        // a point rounded up to the total would fall past the end
        places.push_back(std::min<int64_t>(found - totals.begin(), last));
    }
    return places;
}

// What is left of the rows' distances to the seeds with each trial as the next one.
class Trials {
  public:
    Trials(const float* rows, int64_t count, int64_t latents, int64_t most)
        : rows_(rows),
          count_(count),
          latents_(latents),
          packed_(rows, count, latents, Metric::euclidean),
          left_(static_cast<size_t>(most), std::vector<float>(static_cast<size_t>(count))) {}

    void measure(const std::vector<int64_t>& trials, const std::vector<float>& limit,
                 const DenseKernels& kernels, int64_t threads) {
        const auto number = static_cast<int64_t>(trials.size());
        for_row_ranges(packed_.panels().count(), threads, [&](int64_t begin, int64_t end) {
            for (int64_t panel = begin; panel < end; ++panel) {
                for (int64_t first = 0; first < number; first += kGroup) {
                    measure_group(trials, first, std::min(kGroup, number - first), panel, limit, kernels);
                }
            }
        });
        for (int64_t t = 0; t < number; ++t) left_[t][trials[t]] = 0;
    }

    int64_t best(int64_t number) const {
        std::vector<double> totals(static_cast<size_t>(number));
        for (int64_t t = 0; t < number; ++t) {
            for (const float left : left_[t]) totals[t] += left;
        }
        return std::min_element(totals.begin(), totals.end()) - totals.begin();
    }

    const std::vector<float>& left(int64_t trial) const { return left_[trial]; }

  private:
    void measure_group(const std::vector<int64_t>& trials, int64_t first, int64_t number, int64_t panel,
                       const std::vector<float>& limit, const DenseKernels& kernels) {
        const int64_t width = packed_.panels().width, from = panel * width;
        const float* members[kGroup];
        // the last trial stands in where the group is not full
        for (int64_t i = 0; i < kGroup; ++i) {
            members[i] = rows_ + trials[first + std::min(i, number - 1)] * latents_;
        }
        alignas(64) float dots[kGroup * 64] = {};
        kernels.accumulate(members, latents_, packed_.panels().numbers + from * latents_, width, dots);
        const float* squares = packed_.bias();
        for (int64_t i = 0; i < number; ++i) {
            const float own = squares[trials[first + i]];
            float* left = left_[first + i].data() + from;
            for (int64_t c = 0; c < std::min(width, count_ - from); ++c) {
                const float scale = squares[from + c] + own;
                const float far = scale - 2 * dots[i * width + c];
                left[c] = std::min(limit[from + c], far <= kRounding * scale ? 0.0f : far);
            }
        }
    }

    const float* rows_;
    int64_t count_;
    int64_t latents_;
    Centroids packed_;
    std::vector<std::vector<float>> left_;
};

}  // namespace

int64_t far_rows(const float* rows, const uint8_t* may_seed, int64_t count, int64_t latents,
                 const double* draws, int64_t clusters, int64_t trials, const DenseKernels& kernels,
                 int64_t threads, int64_t* chosen) {
    std::vector<float> weights(may_seed, may_seed + count), limit(static_cast<size_t>(count));
    // rows that cannot be seeds stay at distance 0
    for (int64_t i = 0; i < count; ++i) limit[i] = may_seed[i] ? __builtin_inff() : 0.0f;
    Trials tried(rows, count, latents, trials);
    for (int64_t k = 0; k < clusters; ++k) {
        const std::vector<int64_t> places = draw(weights, draws + k * trials, k == 0 ? 1 : trials);
        if (places.empty()) return k;
        tried.measure(places, limit, kernels, threads);
        const int64_t best = tried.best(static_cast<int64_t>(places.size()));
        chosen[k] = places[best];
        weights = limit = tried.left(best);
    }
    return clusters;
}

}  // namespace saerl
