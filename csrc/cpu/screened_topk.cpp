#include "screened_topk.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "rescoring.h"
#include "sift.h"

namespace saerl {

ScreenedTopK::ScreenedTopK(int64_t rows, int64_t k, int64_t limit, const ScreenKernels& kernels)
    : Screen(rows, limit, -std::numeric_limits<float>::infinity(), kernels), k_(k) {}

// Raise the floor to the k-th largest likely score. What the floor kept out has a smaller one, so it is that of the
// whole row.
void ScreenedTopK::make_room(Row& row) const {
    if (row.held >= k_) {
        row.floor = std::max(row.floor, kth_likely(row));
        int64_t kept = 0;
        for (int64_t i = 0; i < row.held; ++i) {
            row.likely[kept] = row.likely[i];
            row.upper[kept] = row.upper[i];
            row.columns[kept] = row.columns[i];
            kept += !(row.upper[i] < row.floor);
        }
        row.held = kept;
    }
    resize(row, std::max(row.held, k_));
}

float ScreenedTopK::kth_likely(const Row& row) const {
    std::vector<int32_t> scratch(static_cast<size_t>(row.held));
    return kernels_.kth_largest(row.likely.data(), row.held, k_, scratch.data());
}

// Turn what the row kept into candidates, the k likeliest first.
void ScreenedTopK::choose(Row& row) const {
    const float likeliest = kth_likely(row);
    row.floor = std::max(row.floor, likeliest);
    row.candidates.reserve(static_cast<size_t>(row.held));
    std::vector<Candidate>& chosen = row.candidates;
    const auto at = [&](int64_t i) { return Candidate{row.likely[i], row.upper[i], row.columns[i], 0}; };
    // k of them reach the k-th likely score, at least
    int64_t last = 0;
    for (; static_cast<int64_t>(chosen.size()) < k_; ++last) {
        if (row.likely[last] >= likeliest) chosen.push_back(at(last));
    }
    for (int64_t i = 0; i < row.held; ++i) {
        const bool among_best = i < last && row.likely[i] >= likeliest;
        if (!among_best && !(row.upper[i] < row.floor)) chosen.push_back(at(i));
    }
    row.expected = k_;
    close(row);
}

// The least exact score of the k likeliest columns: the k-th largest score is not below it.
void ScreenedTopK::prove(Row& row) const {
    const auto rest = row.candidates.begin() + k_;
    row.proved = std::numeric_limits<double>::infinity();
    for (auto c = row.candidates.begin(); c != rest; ++c) row.proved = std::fmin(row.proved, c->score);
    // columns that reach the proved floor may have been left out
    const bool all = static_cast<int64_t>(row.candidates.size()) == columns_seen_;
    row.whole = !all && row.proved < static_cast<double>(row.floor);
    const auto below = [&](const Candidate& c) { return static_cast<double>(c.upper) < row.proved; };
    row.candidates.erase(std::remove_if(rest, row.candidates.end(), below), row.candidates.end());
}

ScreenCounts ScreenedTopK::finish(const Encoder& encoder, float* values, int32_t* columns, bool relu,
                                  int64_t threads) {
    const Rescoring rescoring(encoder, kernels_, threads);
    for_screened(threads, [&](int64_t, Row& row) { choose(row); });
    rescoring.score(expected());
    for_screened(threads, [&](int64_t, Row& row) { prove(row); });
    rescoring.score_in_float32(others());
    std::vector<ScreenCounts> counts(rows_.size());
    for_screened(threads, [&](int64_t i, Row& row) {
        sift(row, i, rescoring, [&](int32_t) { return row.proved; }, counts[i]);
    });
    rescoring.score(others());
    for_screened(threads, [&](int64_t i, Row& row) {
        tally(row.candidates, counts[i]);
        write_best(row.candidates, k_, relu, values + i * k_, columns + i * k_);
    });
    rescoring.score_whole(
        whole_rows(), [&](int64_t i, const double* scores) { return rescoring.reaching_kth(i, scores, k_); },
        [&](int64_t i, std::vector<Candidate>& kept) {
            write_best(kept, k_, relu, values + i * k_, columns + i * k_);
        });
    return total(counts);
}

}  // namespace saerl
