#include "screening.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "rescoring.h"
#include "threads.h"

namespace saerl {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kSlack = 192;  // room beyond half as much again as a row holds when its floor was raised

}  // namespace

RunningScreen::RunningScreen(int64_t rows, int64_t k, int64_t limit, const ScreenKernels& kernels)
    : k_(k), limit_(limit), kernels_(kernels), rows_(static_cast<size_t>(rows)) {
    for (Row& row : rows_) row.floor = -kInfinity;
}

void RunningScreen::absorb(const ProductBlock& block, const RowTerms& terms, int64_t threads) {
    for_row_ranges(rows(), threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            rows_[i].whole |= std::isnan(terms.step[i]);
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

void RunningScreen::absorb_row(Row& row, const ProductRow& products, int64_t width) const {
    for (int64_t begin = 0; begin < width && !row.whole;) {
        Found found = {row.likely.data(), row.upper.data(), row.columns.data(), row.held,
                       static_cast<int64_t>(row.columns.size())};
        if (full(found)) {
            cut_back(row);
            continue;
        }
        begin = kernels_.collect(products, begin, width, row.floor, columns_seen_, found);
        row.held = found.count;
    }
}

// Raise the floor to the k-th largest likely score. What the floor kept out has a smaller one, so it is that of the
// whole row. Then make room.
void RunningScreen::cut_back(Row& row) const {
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
    row.whole = row.held > limit_;
    const size_t room = row.whole ? 0 : static_cast<size_t>(std::max(row.held, k_) * 3 / 2 + kSlack);
    if (row.whole || room > row.columns.size()) {
        row.likely.resize(room);
        row.upper.resize(room);
        row.columns.resize(room);
    }
}

float RunningScreen::kth_likely(const Row& row) const {
    std::vector<int32_t> scratch(static_cast<size_t>(row.held));
    return kernels_.kth_largest(row.likely.data(), row.held, k_, scratch.data());
}

// Turn what the row kept into candidates.
void RunningScreen::choose(Row& row) const {
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
    row.likely = {};
    row.upper = {};
    row.columns = {};
    row.whole = static_cast<int64_t>(chosen.size()) > limit_;
}

// The least exact score of the k likeliest columns: the k-th largest score is not below it.
void RunningScreen::prove(Row& row) const {
    const auto rest = row.candidates.begin() + k_;
    row.proved = std::numeric_limits<double>::infinity();
    for (auto c = row.candidates.begin(); c != rest; ++c) row.proved = std::fmin(row.proved, c->score);
    // columns that reach the proved floor may have been left out
    const bool all = static_cast<int64_t>(row.candidates.size()) == columns_seen_;
    row.whole = !all && row.proved < static_cast<double>(row.floor);
    const auto below = [&](const Candidate& c) { return static_cast<double>(c.upper) < row.proved; };
    row.candidates.erase(std::remove_if(rest, row.candidates.end(), below), row.candidates.end());
}

// Leave out what float32 scores rule out, and hold these against the bounds too.
void RunningScreen::sift(Row& row, int64_t i, const Rescoring& rescoring, ScreenCounts& counts) const {
    const auto rest = row.candidates.begin() + k_, end = row.candidates.end();
    const auto error = [&](const Candidate& c) { return rescoring.float_error(i, c.column, c.score); };
    counts.sieved = end - rest;
    counts.outside =
        std::count_if(rest, end, [&](const Candidate& c) { return c.score - error(c) > c.upper; });
    const auto below = [&](const Candidate& c) { return c.score + error(c) < row.proved; };
    row.candidates.erase(std::remove_if(rest, end, below), end);
}

// Some of the candidates of each row that is screened.
template <typename Choose>
std::vector<RowCandidates> RunningScreen::candidates(const Choose& choose) {
    std::vector<RowCandidates> chosen;
    for (int64_t i = 0; i < rows(); ++i) {
        std::vector<Candidate>& all = rows_[i].candidates;
        if (!rows_[i].whole) chosen.push_back(choose(i, all.data(), all.data() + all.size()));
    }
    return chosen;
}

ScreenCounts RunningScreen::finish(const Encoder& encoder, float* values, int32_t* columns, bool relu,
                                   int64_t threads) {
    const Rescoring rescoring(encoder, kernels_, threads);
    for_screened(threads, [&](int64_t, Row& row) { choose(row); });
    rescoring.score(candidates(
        [&](int64_t i, Candidate* begin, Candidate*) { return RowCandidates{i, begin, begin + k_}; }));
    for_screened(threads, [&](int64_t, Row& row) { prove(row); });
    const auto beyond_best = [&](int64_t i, Candidate* begin, Candidate* end) {
        return RowCandidates{i, begin + k_, end};
    };
    rescoring.score_in_float32(candidates(beyond_best));
    std::vector<ScreenCounts> counts(rows_.size());
    for_screened(threads, [&](int64_t i, Row& row) { sift(row, i, rescoring, counts[i]); });
    rescoring.score(candidates(beyond_best));
    for_screened(threads, [&](int64_t i, Row& row) {
        tally(row.candidates, counts[i]);
        write_best(row.candidates, k_, relu, values + i * k_, columns + i * k_);
    });
    std::vector<int64_t> whole;
    for (int64_t i = 0; i < rows(); ++i) {
        if (rows_[i].whole) whole.push_back(i);
    }
    rescoring.score_whole(whole, k_, relu, values, columns);
    ScreenCounts total;
    total.whole = static_cast<int64_t>(whole.size());
    for (const ScreenCounts& row : counts) {
        total.sieved += row.sieved;
        total.scored += row.scored;
        total.outside += row.outside;
        total.worst = std::max(total.worst, row.worst);
    }
    return total;
}

void RunningScreen::for_screened(int64_t threads, const std::function<void(int64_t, Row&)>& body) {
    for_row_ranges(rows(), threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            if (!rows_[i].whole) body(i, rows_[i]);
        }
    });
}

}  // namespace saerl
