#include "screening.h"

#include <algorithm>
#include <cmath>

#include "threads.h"

namespace saerl {
namespace {

constexpr int64_t kSlack = 192;  // room beyond half as much again as a row holds

}  // namespace

Screen::Screen(int64_t rows, int64_t limit, float floor, const ScreenKernels& kernels)
    : limit_(limit), kernels_(kernels), rows_(static_cast<size_t>(rows)) {
    for (Row& row : rows_) row.floor = floor;
}

void Screen::absorb(const ProductBlock& block, const RowTerms& terms, int64_t threads) {
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

void Screen::absorb_row(Row& row, const ProductRow& products, int64_t width) const {
    for (int64_t begin = 0; begin < width && !row.whole;) {
        Found found = {row.likely.data(), row.upper.data(), row.columns.data(), row.held,
                       static_cast<int64_t>(row.columns.size())};
        if (full(found)) {
            make_room(row);
            continue;
        }
        begin = kernels_.collect(products, begin, width, row.floor, columns_seen_, found);
        row.held = found.count;
    }
}

void Screen::resize(Row& row, int64_t used) const {
    row.whole = row.held > limit_;
    const size_t room = row.whole ? 0 : static_cast<size_t>(used * 3 / 2 + kSlack);
    if (row.whole || room > row.columns.size()) {
        row.likely.resize(room);
        row.upper.resize(room);
        row.columns.resize(room);
    }
}

void Screen::close(Row& row) const {
    row.likely = {};
    row.upper = {};
    row.columns = {};
    row.whole = static_cast<int64_t>(row.candidates.size()) > limit_;
}

void Screen::for_screened(int64_t threads, const std::function<void(int64_t, Row&)>& body) {
    for_row_ranges(rows(), threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            if (!rows_[i].whole) body(i, rows_[i]);
        }
    });
}

std::vector<RowCandidates> Screen::expected() {
    std::vector<RowCandidates> chosen;
    for (int64_t i = 0; i < rows(); ++i) {
        Candidate* begin = rows_[i].candidates.data();
        if (!rows_[i].whole) chosen.push_back({i, begin, begin + rows_[i].expected});
    }
    return chosen;
}

std::vector<RowCandidates> Screen::others() {
    std::vector<RowCandidates> chosen;
    for (int64_t i = 0; i < rows(); ++i) {
        std::vector<Candidate>& all = rows_[i].candidates;
        if (!rows_[i].whole) chosen.push_back({i, all.data() + rows_[i].expected, all.data() + all.size()});
    }
    return chosen;
}

std::vector<int64_t> Screen::whole_rows() const {
    std::vector<int64_t> whole;
    for (int64_t i = 0; i < rows(); ++i) {
        if (rows_[i].whole) whole.push_back(i);
    }
    return whole;
}

ScreenCounts Screen::total(const std::vector<ScreenCounts>& of_rows) const {
    ScreenCounts total;
    total.whole = static_cast<int64_t>(whole_rows().size());
    for (const ScreenCounts& row : of_rows) {
        total.sieved += row.sieved;
        total.scored += row.scored;
        total.outside += row.outside;
        total.worst = std::max(total.worst, row.worst);
    }
    return total;
}

}  // namespace saerl
