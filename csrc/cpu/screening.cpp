#include "screening.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "rescoring.h"
#include "row_loops.h"
#include "threads.h"

namespace saerl {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kGroup = 16;
constexpr int64_t kSlack = 256;  // candidates beyond 2 k before the floor is raised

bool larger_lower(const Candidate& one, const Candidate& other) {
    return one.lower > other.lower;
}

}  // namespace

RunningScreen::RunningScreen(int64_t rows, int64_t k, int64_t limit, const ScreenKernels& kernels)
    : k_(k), limit_(limit), kernels_(kernels), rows_(static_cast<size_t>(rows)) {
    for (Row& row : rows_) {
        row.floor = -kInfinity;
        row.next_cut = 2 * k + kSlack;
    }
}

void RunningScreen::absorb(const ProductBlock& block, const RowTerms& terms, int64_t threads) {
    for_row_ranges(rows(), threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            rows_[i].whole |= std::isnan(terms.step[i]);
            if (rows_[i].whole) continue;
            const ProductRow products = {block.products + i * block.width,
                                         block.scale,
                                         block.reach,
                                         block.error,
                                         block.low,
                                         block.high,
                                         terms.step[i],
                                         terms.spread[i],
                                         terms.size[i]};
            absorb_row(rows_[i], products, block.width);
        }
    });
    columns_seen_ += block.width;
}

void RunningScreen::absorb_row(Row& row, const ProductRow& products, int64_t width) {
    const int64_t groups = (width + kGroup - 1) / kGroup;
    if (row.floor == -kInfinity && groups >= 2 * k_) {
        // the k-th largest group maximum of the lower bounds is not above the k-th largest of them all
        std::vector<float> maxima(static_cast<size_t>(groups));
        std::vector<int32_t> ordered(static_cast<size_t>(groups));
        kernels_.lower_maxima(products, width, kGroup, maxima.data());
        row.floor = kth_largest(maxima.data(), groups, k_, ordered.data());
    }
    Found found;
    for (int64_t begin = 0; begin < width && !row.whole;) {
        begin = kernels_.collect(products, begin, width, row.floor, found);
        hold(row, found);
        found.count = 0;
        if (static_cast<int64_t>(row.candidates.size()) >= row.next_cut) cut_back(row);
    }
}

void RunningScreen::hold(Row& row, const Found& found) const {
    for (int64_t i = 0; i < found.count; ++i) {
        // a bound that is not a number bounds nothing
        const float lower = std::isnan(found.lower[i]) ? -kInfinity : found.lower[i];
        const float upper = std::isnan(found.upper[i]) ? kInfinity : found.upper[i];
        const int32_t column = static_cast<int32_t>(columns_seen_) + found.columns[i];
        row.candidates.push_back({lower, upper, column, 0});
    }
}

// Raise the floor to the k-th largest lower bound. What the floor kept out has a smaller one, so it is that of the
// whole row.
void RunningScreen::cut_back(Row& row) const {
    drop_unproved(row);
    const int64_t held = static_cast<int64_t>(row.candidates.size());
    row.next_cut = 2 * held + kSlack;
    if (held > limit_) {
        row.whole = true;
        row.candidates = {};
    }
}

void RunningScreen::drop_unproved(Row& row) const {
    const auto begin = row.candidates.begin(), kth = begin + (k_ - 1);
    std::nth_element(begin, kth, row.candidates.end(), larger_lower);
    row.floor = std::max(row.floor, kth->lower);
    const float floor = row.floor;
    // the first k reach the floor, since their lower bounds do
    row.candidates.erase(
        std::remove_if(begin + k_, row.candidates.end(), [=](const Candidate& c) { return c.upper < floor; }),
        row.candidates.end());
}

ScreenCounts RunningScreen::finish(const Encoder& encoder, float* values, int32_t* columns, bool relu,
                                   int64_t threads) {
    const Rescoring rescoring(encoder, kernels_, threads);
    ScreenCounts counts;
    std::vector<int64_t> whole, screened;
    for (int64_t i = 0; i < rows(); ++i) {
        if (!rows_[i].whole) drop_unproved(rows_[i]);
        rows_[i].whole |= static_cast<int64_t>(rows_[i].candidates.size()) > limit_;
        (rows_[i].whole ? whole : screened).push_back(i);
    }
    std::vector<RowCandidates> best, rest;
    for (const int64_t i : screened) {
        Candidate* first = rows_[i].candidates.data();
        best.push_back({i, first, first + k_});
    }
    rescoring.score(best);
    for (const RowCandidates& row : best) {
        double floor = std::numeric_limits<double>::infinity();
        for (const Candidate* c = row.begin; c < row.end; ++c) floor = std::fmin(floor, c->score);
        std::vector<Candidate>& all = rows_[row.row].candidates;
        all.erase(std::remove_if(all.begin() + k_, all.end(),
                                 [=](const Candidate& c) { return static_cast<double>(c.upper) < floor; }),
                  all.end());
        rest.push_back({row.row, all.data() + k_, all.data() + all.size()});
    }
    rescoring.score(rest);
    for_row_ranges(static_cast<int64_t>(screened.size()), threads, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
            const int64_t i = screened[n];
            write_best(rows_[i].candidates, k_, relu, values + i * k_, columns + i * k_);
        }
    });
    for (const int64_t i : screened) tally(rows_[i].candidates, counts);
    rescoring.score_whole(whole, k_, relu, values, columns);
    counts.whole = static_cast<int64_t>(whole.size());
    return counts;
}

}  // namespace saerl
