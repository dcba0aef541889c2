#include "screened_topk.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "row_loops.h"

namespace saerl {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kMostRanked = 160;  // more are sorted
constexpr int64_t kGroupStep = 16;    // columns of one vector
constexpr int64_t kMostGroups = 256;

}  // namespace

ScreenedTopK::ScreenedTopK(int64_t k, int64_t limit, float trust, const ScreenKernels& kernels)
    : Screen(-kInfinity, limit, trust, kernels), k_(k) {}

float ScreenedTopK::kth_lower(const Row& row) const {
    thread_local std::vector<int32_t> scratch;
    if (static_cast<int64_t>(scratch.size()) < row.count) scratch.resize(static_cast<size_t>(row.count));
    return kernels_.kth_largest(row.lower, row.count, k_, scratch.data());
}

// The k-th largest maximum of groups of columns: k columns at least reach it.
void ScreenedTopK::look_ahead(Row& row, const ProductRow& products, int64_t width) const {
    const int64_t groups = (2 * k_ + kGroupStep - 1) / kGroupStep * kGroupStep;
    if (groups > kMostGroups || width < 4 * groups) return;
    float maxima[kMostGroups];
    int32_t scratch[kMostGroups];
    kernels_.likely_maxima(products, width, groups, maxima);
    row.floor = kernels_.kth_largest(maxima, groups, k_, scratch);
}

void ScreenedTopK::make_room(Row& row) const {
    if (row.count >= k_) screen(row);
}

// What the floor kept out is likely smaller, so the k-th of the rest is that of all columns so far.
void ScreenedTopK::screen(Row& row) const {
    row.floor = std::max(row.floor, kth_lower(row));
    kernels_.drop_below(row.floor, row);
}

void ScreenedTopK::settle(Row& row) const {
    const float proved = kth_lower(row);
    // columns that reach the proved floor may have been left out
    row.whole = row.count < columns_seen_ && proved < row.floor;
    kernels_.drop_below(proved, row);
}

void ScreenedTopK::take(int64_t i, const Row& row, const double* scores) {
    float* values = values_ + i * k_;
    int32_t* columns = columns_ + i * k_;
    if (std::any_of(scores, scores + row.count, [](double score) { return std::isnan(score); })) {
        std::fill_n(values, k_, std::numeric_limits<float>::quiet_NaN());
        std::iota(columns, columns + k_, 0);
        return;
    }
    const auto write = [&](int64_t place, int64_t n) {
        values[place] = relu_ && !(scores[n] > 0) ? 0.0f : static_cast<float>(scores[n]);
        columns[place] = row.columns[n];
    };
    if (row.count <= kMostRanked) {
        double padded[kMostRanked];
        int64_t ranks[kMostRanked];
        const int64_t count = (row.count + kRankStep - 1) / kRankStep * kRankStep;
        std::copy_n(scores, row.count, padded);
        std::fill(padded + row.count, padded + count, -kInfinity);
        kernels_.rank_scores(padded, count, ranks);
        for (int64_t n = 0; n < row.count; ++n) {
            if (ranks[n] < k_) write(ranks[n], n);
        }
        return;
    }
    std::vector<int64_t> order(static_cast<size_t>(row.count));
    std::iota(order.begin(), order.end(), 0);
    const auto better = [&](int64_t one, int64_t other) {
        return scores[one] > scores[other] || (scores[one] == scores[other] && one < other);
    };
    std::nth_element(order.begin(), order.begin() + (k_ - 1), order.end(), better);
    std::sort(order.begin(), order.begin() + k_, better);
    for (int64_t place = 0; place < k_; ++place) write(place, order[place]);
}

ScreenCounts ScreenedTopK::finish(const Encoder& encoder, float* values, int32_t* columns, bool* certified,
                                  bool relu, int64_t threads) {
    values_ = values;
    columns_ = columns;
    relu_ = relu;
    return finish_rows(encoder, certified, threads);
}

}  // namespace saerl
