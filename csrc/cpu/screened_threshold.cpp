#include "screened_threshold.h"

#include <algorithm>
#include <cmath>

#include "rescoring.h"
#include "sift.h"

namespace saerl {

ScreenedThreshold::ScreenedThreshold(int64_t rows, int64_t limit, const ScreenKernels& kernels)
    : Screen(rows, limit, 0, kernels), kept_(rows) {}

// Turn what the row kept into candidates, in two runs of ascending columns: those that are likely kept come first.
void ScreenedThreshold::choose(Row& row, const double* bound) const {
    row.candidates.reserve(static_cast<size_t>(row.held));
    for (const bool likely : {true, false}) {
        for (int64_t i = 0; i < row.held; ++i) {
            if ((row.likely[i] >= 0) != likely) continue;
            // from score - bound back to the score; BIAS_SLACK allows for the rounding
            const float up = static_cast<float>(bound[row.columns[i]]);
            row.candidates.push_back({row.likely[i] + up, row.upper[i] + up, row.columns[i], 0});
        }
        if (likely) row.expected = static_cast<int64_t>(row.candidates.size());
    }
    close(row);
}

// candidates: scored, in ascending columns
void ScreenedThreshold::keep(int64_t i, const std::vector<Candidate>& candidates, const double* bound) {
    for (const Candidate& c : candidates) {
        if (std::isnan(c.score)) return kept_.spoil(i);
        const float value = static_cast<float>(c.score);
        if (c.score > bound[c.column] && value > 0) kept_.add(i, c.column, value);
    }
}

ScreenCounts ScreenedThreshold::finish(const Encoder& encoder, const double* bound, int64_t threads) {
    const Rescoring rescoring(encoder, kernels_, threads);
    for_screened(threads, [&](int64_t, Row& row) { choose(row, bound); });
    rescoring.score(expected());
    rescoring.score_in_float32(others());
    std::vector<ScreenCounts> counts(rows_.size());
    for_screened(threads, [&](int64_t i, Row& row) {
        sift(row, i, rescoring, [&](int32_t column) { return bound[column]; }, counts[i]);
    });
    rescoring.score(others());
    for_screened(threads, [&](int64_t i, Row& row) {
        tally(row.candidates, counts[i]);
        std::inplace_merge(
            row.candidates.begin(), row.candidates.begin() + row.expected, row.candidates.end(),
            [](const Candidate& one, const Candidate& other) { return one.column < other.column; });
        keep(i, row.candidates, bound);
    });
    rescoring.score_whole(
        whole_rows(),
        [&](int64_t i, const double* scores) {
            return rescoring.reaching(i, scores, [&](int64_t column) { return bound[column]; });
        },
        [&](int64_t i, std::vector<Candidate>& candidates) { keep(i, candidates, bound); });
    return total(counts);
}

}  // namespace saerl
