#include "rescoring.h"

#include <algorithm>

namespace saerl {
namespace {

constexpr int64_t kSliceNumbers = 1 << 21;  // 8 MB of w

}  // namespace

Rescoring::Rescoring(const Encoder& encoder, const ScreenKernels& kernels)
    : encoder_(encoder),
      kernels_(kernels),
      slice_(std::max<int64_t>(1, kSliceNumbers / std::max<int64_t>(1, encoder.width))) {}

// body(row, end): compute the numbers from row.done to `end`.
template <typename Number, typename Body>
void Rescoring::by_slices(std::vector<Wanted<Number>>& rows, const Body& body) const {
    for (int64_t first = 0; first < encoder_.latents; first += slice_) {
        for (Wanted<Number>& row : rows) {
            int64_t end = row.done;
            while (end < row.count && row.columns[end] < first + slice_) ++end;
            if (end > row.done) body(row, end);
            row.done = end;
        }
    }
}

template <typename Number>
Chosen Rescoring::chosen(const Wanted<Number>& row, int64_t end) const {
    return {encoder_.w, encoder_.width, row.columns + row.done, end - row.done};
}

void Rescoring::float_dots(std::vector<Wanted<float>>& rows) const {
    std::vector<float> y(static_cast<size_t>(encoder_.width + kFloatDotLanes));
    by_slices(rows, [&](const Wanted<float>& row, int64_t end) {
        kernels_.centre(x_of(row.row), encoder_.float_shift, encoder_.width, y.data());
        kernels_.float_dots(chosen(row, end), y.data(), row.numbers + row.done);
    });
}

void Rescoring::scores(std::vector<Wanted<double>>& rows) const {
    std::vector<double> y(static_cast<size_t>(encoder_.width));
    by_slices(rows, [&](const Wanted<double>& row, int64_t end) {
        kernels_.widen(x_of(row.row), encoder_.shift, encoder_.width, y.data());
        kernels_.dots(chosen(row, end), y.data(), row.numbers + row.done);
    });
    for (const Wanted<double>& row : rows) {
        for (int64_t i = 0; i < row.count; ++i) {
            const int64_t j = row.columns[i];
            const double score = row.numbers[i] + static_cast<double>(encoder_.bias[j]);
            row.numbers[i] = encoder_.scale ? score * static_cast<double>(encoder_.scale[j]) : score;
        }
    }
}

}  // namespace saerl
