// Rows that keep any number of columns with their values: lists that grow, written out side by side at the end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace saerl {

class KeptRows {
  public:
    explicit KeptRows(int64_t rows) : rows_(static_cast<size_t>(rows)) {}

    // Columns come in ascending order.
    void add(int64_t row, int32_t column, float value) {
        rows_[row].columns.push_back(column);
        rows_[row].values.push_back(value);
    }
    // The row keeps one entry: column 0, value NaN.
    void spoil(int64_t row);

    int64_t rows() const { return static_cast<int64_t>(rows_.size()); }
    void counts(int64_t* counts) const;  // OUT [rows]
    void write(int32_t* columns,         // OUT [sum of counts]
               float* values,            // OUT [sum of counts]
               int64_t threads) const;

  private:
    struct Kept {
        std::vector<int32_t> columns;
        std::vector<float> values;
    };
    std::vector<Kept> rows_;
};

}  // namespace saerl
