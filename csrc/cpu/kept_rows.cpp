#include "kept_rows.h"

#include <algorithm>
#include <limits>

#include "threads.h"

namespace saerl {

void KeptRows::spoil(int64_t row) {
    rows_[row].columns.assign(1, 0);
    rows_[row].values.assign(1, std::numeric_limits<float>::quiet_NaN());
}

void KeptRows::counts(int64_t* counts) const {
    for (const Kept& kept : rows_) *counts++ = static_cast<int64_t>(kept.columns.size());
}

void KeptRows::write(int32_t* columns, float* values, int64_t threads) const {
    std::vector<int64_t> firsts = {0};
    for (const Kept& kept : rows_)
        firsts.push_back(firsts.back() + static_cast<int64_t>(kept.columns.size()));
    for_row_ranges(rows(), threads, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            std::copy(rows_[row].columns.begin(), rows_[row].columns.end(), columns + firsts[row]);
            std::copy(rows_[row].values.begin(), rows_[row].values.end(), values + firsts[row]);
        }
    });
}

}  // namespace saerl
