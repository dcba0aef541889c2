#include "screening.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "rescoring.h"
#include "threads.h"

namespace saerl {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kSlack = 640;       // room beyond half as much again as a row holds
constexpr int64_t kSpareRoom = 2048;  // a larger room is not kept for the next row
constexpr int64_t kWholeRows = 16;    // rows of all latents that one thread holds at a time

int64_t in_whole_steps(int64_t room) {
    return (room + Found::kWidestStep - 1) / Found::kWidestStep * Found::kWidestStep;
}

}  // namespace

void Screen::Row::start(float first_floor) {
    if (room > kSpareRoom) {
        bounds.reset();
        numbers.reset();
        room = 0;
    }
    count = 0;
    floor = first_floor;
    whole = false;
}

void Screen::Row::grow(int64_t least_room) {
    const int64_t more = in_whole_steps(least_room);
    if (more <= room) return;
    // not set to anything
    std::unique_ptr<float[]> new_bounds(new float[static_cast<size_t>(2 * more)]);
    std::unique_ptr<int32_t[]> new_numbers(new int32_t[static_cast<size_t>(more)]);
    std::copy_n(lower, count, new_bounds.get());
    std::copy_n(upper, count, new_bounds.get() + more);
    std::copy_n(columns, count, new_numbers.get());
    bounds = std::move(new_bounds);
    numbers = std::move(new_numbers);
    lower = bounds.get();
    upper = lower + more;
    columns = numbers.get();
    room = more;
}

void Screen::Row::keep_all(int64_t latents) {
    count = 0;
    grow(latents);
    count = latents;
    floor = -kInfinity;
    whole = false;
    std::fill_n(lower, latents, -kInfinity);
    std::fill_n(upper, latents, kInfinity);
    std::iota(columns, columns + latents, 0);
}

Screen::Screen(float first_floor, int64_t limit, float trust, const ScreenKernels& kernels)
    : first_floor_(first_floor), limit_(limit), trust_(trust), kernels_(kernels) {}

void Screen::start(int64_t rows, const ColumnTerms& columns, const RowTerms& terms) {
    rows_ = rows;
    terms_ = columns;
    row_terms_ = terms;
    columns_seen_ = 0;
    if (static_cast<int64_t>(all_.size()) < rows) all_.resize(static_cast<size_t>(rows));
    for (int64_t i = 0; i < rows; ++i) {
        all_[i].start(first_floor_);
        all_[i].whole = std::isnan(terms.step[i]);
    }
}

void Screen::absorb(const int32_t* products, int64_t width, int64_t threads) {
    const int64_t first = columns_seen_;
    for_row_ranges(rows_, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const ProductRow row = {products + i * width, terms_.scale + first,
                                    terms_.reach + first, terms_.error + first,
                                    terms_.low + first,   terms_.high + first,
                                    row_terms_.step[i],   row_terms_.spread[i],
                                    row_terms_.size[i],   trust_};
            absorb_row(all_[i], row, width);
        }
    });
    columns_seen_ += width;
}

void Screen::absorb_row(Row& row, const ProductRow& products, int64_t width) const {
    if (columns_seen_ == 0 && !row.whole) look_ahead(row, products, width);
    for (int64_t begin = 0; begin < width && !row.whole;) {
        if (full(row)) make_or_find_room(row);
        if (!row.whole) begin = kernels_.collect(products, begin, width, row.floor, columns_seen_, row);
    }
}

void Screen::make_or_find_room(Row& row) const {
    make_room(row);
    row.whole = row.count > limit_;
    // where half of it is free again, it is enough
    if (!row.whole && (full(row) || 2 * row.count >= row.room)) row.grow(row.count * 3 / 2 + kSlack);
}

std::vector<int64_t> Screen::rows_that_are(bool whole, int64_t begin, int64_t end) const {
    std::vector<int64_t> found;
    for (int64_t i = begin; i < end; ++i) {
        if (all_[i].whole == whole) found.push_back(i);
    }
    return found;
}

ScreenCounts Screen::finish_rows(const Encoder& encoder, bool* by_bounds, int64_t threads) {
    const Rescoring rescoring(encoder, kernels_);
    std::vector<ScreenCounts> counts(static_cast<size_t>(rows_));
    for_row_ranges(rows_, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            Row& row = all_[i];
            if (!row.whole) screen(row);
            row.whole |= row.count > limit_;
        }
        finish_some(rows_that_are(false, begin, end), rescoring, counts);
    });
    const std::vector<int64_t> whole = rows_that_are(true, 0, rows_);
    if (by_bounds != nullptr) {
        std::fill_n(by_bounds, rows_, true);
        for (const int64_t i : whole) by_bounds[i] = false;
    }
    for_row_ranges(static_cast<int64_t>(whole.size()), threads, [&](int64_t begin, int64_t end) {
        for (int64_t first = begin; first < end; first += kWholeRows) {
            const int64_t stop = std::min(first + kWholeRows, end);
            const std::vector<int64_t> some(whole.begin() + first, whole.begin() + stop);
            for (const int64_t i : some) all_[i].keep_all(encoder.latents);
            finish_some(some, rescoring, counts);
            for (const int64_t i : some) all_[i].start(first_floor_);
        }
    });
    for (const int64_t i : whole) counts[i] = {1, 0, 0, counts[i].outside, 0};
    ScreenCounts total;
    for (const ScreenCounts& row : counts) {
        total.whole += row.whole;
        total.sieved += row.sieved;
        total.scored += row.scored;
        total.outside += row.outside;
        total.worst = std::max(total.worst, row.worst);
    }
    return total;
}

// Memory for a number for every column that these rows keep.
template <typename Number>
std::vector<Wanted<Number>> Screen::wanted_of(const std::vector<int64_t>& some,
                                              std::unique_ptr<Number[]>& numbers) const {
    int64_t total = 0;
    for (const int64_t i : some) total += all_[i].count;
    numbers.reset(new Number[static_cast<size_t>(total)]);
    std::vector<Wanted<Number>> wanted;
    Number* next = numbers.get();
    for (const int64_t i : some) {
        wanted.push_back({i, all_[i].columns, all_[i].count, next});
        next += all_[i].count;
    }
    return wanted;
}

void Screen::finish_some(const std::vector<int64_t>& some, const Rescoring& rescoring,
                         std::vector<ScreenCounts>& counts) {
    std::unique_ptr<float[]> dots;
    std::vector<Wanted<float>> sieved = wanted_of(some, dots);
    rescoring.float_dots(sieved);
    std::vector<int64_t> settled;
    for (const Wanted<float>& wanted : sieved) {
        const int64_t i = wanted.row;
        Row& row = all_[i];
        const float size = static_cast<float>(row_terms_.size[i] * rescoring.float_error());
        const Agreement agreement = kernels_.bound_by_dots(
            {wanted.numbers, rescoring.scale(), terms_.reach, terms_.low, terms_.high, size, trust_}, row);
        counts[i].sieved = row.count;
        counts[i].outside += agreement.outside;
        counts[i].worst = agreement.worst;
        settle(row);
        if (!row.whole) settled.push_back(i);
    }
    std::unique_ptr<double[]> scores;
    std::vector<Wanted<double>> scored = wanted_of(settled, scores);
    rescoring.scores(scored);
    for (const Wanted<double>& wanted : scored) {
        const Row& row = all_[wanted.row];
        ScreenCounts& count = counts[wanted.row];
        count.scored = row.count;
        for (int64_t n = 0; n < row.count; ++n) {
            const double score = wanted.numbers[n] - offset(row.columns[n]);
            count.outside += score < row.lower[n] || score > row.upper[n];
        }
        take(wanted.row, row, wanted.numbers);
    }
}

}  // namespace saerl
