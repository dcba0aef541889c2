#include "screened_threshold.h"

#include <cmath>

namespace saerl {

ScreenedThreshold::ScreenedThreshold(int64_t limit, float trust, const ScreenKernels& kernels)
    : Screen(0, limit, trust, kernels) {}

void ScreenedThreshold::start(int64_t rows, const ColumnTerms& columns, const RowTerms& terms) {
    Screen::start(rows, columns, terms);
    kept_ = KeptRows(rows);
}

void ScreenedThreshold::take(int64_t i, const Row& row, const double* scores) {
    for (int64_t n = 0; n < row.count; ++n) {
        if (std::isnan(scores[n])) return kept_.spoil(i);
        const float value = static_cast<float>(scores[n]);
        const int32_t column = row.columns[n];
        if (scores[n] > bound_[column] && value > 0) kept_.add(i, column, value);
    }
}

ScreenCounts ScreenedThreshold::finish(const Encoder& encoder, const double* bound, int64_t threads) {
    bound_ = bound;
    return finish_rows(encoder, nullptr, threads);
}

}  // namespace saerl
