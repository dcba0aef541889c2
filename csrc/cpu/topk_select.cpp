#include "topk_select.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "row_loops.h"
#include "threads.h"

namespace saerl {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kSmallestGroup = 16;
constexpr int64_t kLargestGroup = 256;
constexpr int64_t kStripeStep = 16;
constexpr int64_t kCut = 4;             // candidates for each that is kept, before they are cut back
constexpr int64_t kGatherWidth = 4096;  // columns copied at a time when they do not lie side by side

float value_of(uint64_t key) {
    uint32_t bits = static_cast<uint32_t>(key >> 32);
    bits = bits & 0x80000000u ? bits & 0x7FFFFFFFu : ~bits;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

int32_t column_of(uint64_t key) {
    return static_cast<int32_t>(0xFFFFFFFFu - static_cast<uint32_t>(key));
}

// The largest group that leaves 2 k groups, or 0 where the row is too short for groups to help.
int64_t group_width(int64_t width, int64_t k) {
    int64_t group = kLargestGroup;
    while (group >= kSmallestGroup && width / group < 2 * k) group /= 2;
    return group >= kSmallestGroup ? group : 0;
}

// So many groups, of columns that lie as many apart, where the row is too short for groups side by side; or 0.
int64_t stripes(int64_t width, int64_t k) {
    const int64_t groups = (2 * k + kStripeStep - 1) / kStripeStep * kStripeStep;
    return width >= 2 * groups ? groups : 0;
}

// The candidates of a row that comes next, and where more of them will be written.
void prefetch(const RowState& state) {
    for (int64_t i = 0; i <= state.held + 16; i += 8) __builtin_prefetch(state.keys + i, 1);
}

}  // namespace

RowState RowSelect::start(uint64_t* keys) {
    return {keys, 0, -kInfinity, false};
}

void RowSelect::absorb(RowState& state, const ScoreBlock& block, int64_t row) {
    const float* scores = block.scores + row * block.row_stride;
    if (block.column_stride == 1) {
        absorb_stretch(state, {scores, block.bias, block.scale}, block.width, block.first_column);
        return;
    }
    gathered_.resize(kGatherWidth);
    for (int64_t begin = 0; begin < block.width; begin += kGatherWidth) {
        const int64_t width = std::min(kGatherWidth, block.width - begin);
        for (int64_t j = 0; j < width; ++j) gathered_[j] = scores[(begin + j) * block.column_stride];
        const float* bias = block.bias ? block.bias + begin : nullptr;
        const float* scale = block.scale ? block.scale + begin : nullptr;
        absorb_stretch(state, {gathered_.data(), bias, scale}, width, block.first_column + begin);
    }
}

void RowSelect::absorb_stretch(RowState& state, const ScoreRow& stretch, int64_t width,
                               int64_t first_column) {
    if (state.nan) return;
    hits_.count = 0;
    hits_.nan = false;
    const int64_t group = state.held == 0 ? group_width(width, k_) : 0;
    if (group == 0) {
        const int64_t groups = state.held == 0 ? stripes(width, k_) : 0;
        if (groups > 0) set_floor_from_stripes(state, stretch, width, groups);
        scan(state, stretch, 0, width, first_column);
    } else {
        set_floor_from_groups(state, stretch, width, group);
        for (const int64_t begin : reaching_) {
            const int64_t end = std::min(begin + group, width);
            scan(state, stretch, begin, end, first_column);
        }
    }
    hold_hits(state, first_column);
    // a tighter floor for the blocks to come
    if (state.held >= kCut * k_) cut_back(state);
}

void RowSelect::set_floor(RowState& state) {
    if (ordered_.size() < maxima_.size()) ordered_.resize(maxima_.size());
    const int64_t count = static_cast<int64_t>(maxima_.size());
    state.floor = kernels_.kth_largest(maxima_.data(), count, k_, ordered_.data());
}

void RowSelect::set_floor_from_stripes(RowState& state, const ScoreRow& stretch, int64_t width,
                                       int64_t groups) {
    maxima_.resize(static_cast<size_t>(groups));
    kernels_.strided_maxima(stretch, width, groups, maxima_.data());
    set_floor(state);
}

void RowSelect::set_floor_from_groups(RowState& state, const ScoreRow& stretch, int64_t width,
                                      int64_t group) {
    maxima_.resize(static_cast<size_t>((width + group - 1) / group));
    state.nan |= kernels_.group_maxima(stretch, width, group, maxima_.data());
    set_floor(state);
    reaching_.resize(maxima_.size());
    size_t listed = 0;
    for (size_t g = 0; g < maxima_.size(); ++g) {
        reaching_[listed] = static_cast<int64_t>(g) * group;
        listed += maxima_[g] >= state.floor;
    }
    reaching_.resize(listed);
}

void RowSelect::scan(RowState& state, const ScoreRow& stretch, int64_t begin, int64_t end,
                     int64_t first_column) {
    while (!state.nan) {
        begin = kernels_.collect(stretch, begin, end, state.floor, hits_);
        state.nan |= hits_.nan;
        if (begin == end) return;
        hold_hits(state, first_column);
    }
}

// Move the hits to the candidates.
void RowSelect::hold_hits(RowState& state, int64_t first_column) {
    kernels_.pack_keys(hits_, first_column, state.keys + state.held);
    state.held += hits_.count;
    hits_.count = 0;
    if (state.held > capacity(k_) - Hits::kRoom) cut_back(state);
}

// Keep the best k. A later score lies further right and loses a tie, so it has to be above the k-th.
void RowSelect::cut_back(RowState& state) {
    if (static_cast<int64_t>(ordered_.size()) < state.held)
        ordered_.resize(static_cast<size_t>(capacity(k_)));
    const uint32_t kth = kernels_.keep_best(state.keys, state.held, k_, ordered_.data());
    state.held = k_;
    state.floor = std::nextafter(value_of(static_cast<uint64_t>(kth) << 32), kInfinity);
}

void RowSelect::finish(RowState& state, float* values, int32_t* columns, bool relu) {
    if (state.nan) {
        std::fill(values, values + k_, std::numeric_limits<float>::quiet_NaN());
        for (int64_t i = 0; i < k_; ++i) columns[i] = static_cast<int32_t>(i);
        return;
    }
    const auto write = [&](int64_t place, uint64_t key) {
        const float value = value_of(key);
        values[place] = relu && !(value > 0) ? 0.0f : value;
        columns[place] = column_of(key);
    };
    if (state.held > k_) cut_back(state);
    if (state.held <= kernels_.rank_limit) {
        int64_t count = state.held;
        while (count % kRankStep != 0) state.keys[count++] = 0;
        ranks_.resize(static_cast<size_t>(count));
        kernels_.rank_keys(state.keys, count, ranks_.data());
        for (int64_t i = 0; i < state.held; ++i) write(ranks_[i], state.keys[i]);
    } else {
        std::sort(state.keys, state.keys + k_, std::greater<uint64_t>());
        for (int64_t i = 0; i < k_; ++i) write(i, state.keys[i]);
    }
}

RunningTopK::RunningTopK(int64_t rows, int64_t k, const RowKernels& kernels)
    : k_(k), kernels_(kernels), keys_(new uint64_t[static_cast<size_t>(rows * RowSelect::capacity(k))]) {
    for (int64_t row = 0; row < rows; ++row) {
        rows_.push_back(RowSelect::start(keys_.get() + row * RowSelect::capacity(k)));
    }
}

void RunningTopK::absorb(const ScoreBlock& block, int64_t threads) {
    for_row_ranges(rows(), threads, [&](int64_t begin, int64_t end) {
        RowSelect select(k_, kernels_);
        for (int64_t row = begin; row < end; ++row) {
            if (row + 1 < end) prefetch(rows_[row + 1]);
            select.absorb(rows_[row], block, row);
        }
    });
    columns_seen_ += block.width;
}

void RunningTopK::finish(float* values, int32_t* columns, bool relu, int64_t threads) {
    for_row_ranges(rows(), threads, [&](int64_t begin, int64_t end) {
        RowSelect select(k_, kernels_);
        for (int64_t row = begin; row < end; ++row) {
            select.finish(rows_[row], values + row * k_, columns + row * k_, relu);
        }
    });
}

void topk_select(const ScoreBlock& block, int64_t k, bool relu, const RowKernels& kernels, int64_t threads,
                 float* values, int32_t* columns) {
    for_row_ranges(block.rows, threads, [&](int64_t begin, int64_t end) {
        RowSelect select(k, kernels);
        std::vector<uint64_t> keys(static_cast<size_t>(RowSelect::capacity(k)));
        for (int64_t row = begin; row < end; ++row) {
            RowState state = RowSelect::start(keys.data());
            select.absorb(state, block, row);
            select.finish(state, values + row * k, columns + row * k, relu);
        }
    });
}

}  // namespace saerl
