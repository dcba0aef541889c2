#include "threshold_select.h"

#include <algorithm>
#include <limits>

#include "threads.h"

namespace saerl {
namespace {

// No score below it can be kept. It is above zero, so that rows of zeros cost nothing.
float least_kept(const float* theta, int64_t width) {
    float least = std::numeric_limits<float>::infinity();
    for (int64_t j = 0; j < width; ++j) least = std::min(least, theta[j]);
    return std::max(least, std::numeric_limits<float>::denorm_min());
}

}  // namespace

void RunningThreshold::absorb(const ScoreBlock& block, const float* theta, int64_t threads) {
    const float floor = least_kept(theta, block.width);
    for_row_ranges(rows(), threads, [&](int64_t begin, int64_t end) {
        Hits hits;
        for (int64_t row = begin; row < end; ++row) absorb_row(block, row, theta, floor, hits);
    });
    columns_seen_ += block.width;
}

void RunningThreshold::absorb_row(const ScoreBlock& block, int64_t row, const float* theta, float floor,
                                  Hits& hits) {
    const ScoreRow stretch = {block.scores + row * block.row_stride, block.bias, block.scale};
    for (int64_t begin = 0; begin < block.width && !spoilt_[row];) {
        hits.count = 0;
        hits.nan = false;
        begin = kernels_.collect(stretch, begin, block.width, floor, hits);
        spoilt_[row] = hits.nan;
        for (int64_t i = 0; i < hits.count; ++i) {
            const int32_t column = hits.columns[i];
            if (!(hits.values[i] > theta[column]) || !(hits.values[i] > 0)) continue;
            kept_.add(row, static_cast<int32_t>(block.first_column + column), hits.values[i]);
        }
    }
    if (spoilt_[row]) kept_.spoil(row);
}

}  // namespace saerl
