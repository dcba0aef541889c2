// The k largest scores of each row by int8 screening (screening.h).
//
// Floor while products come: the k-th largest of what scores likely are at least (screen_kernels.h). The k-th largest
// of what they are at least by their float32 dots is a floor that is proved. Where it is below the likely one, that was
// too high, and the row is scored whole.
//
// Descending; ties to the lower column; a row with a NaN score gives NaN values and columns 0..k-1.
#pragma once

#include <cstdint>

#include "screening.h"

namespace saerl {

class ScreenedTopK : public Screen {
  public:
    ScreenedTopK(int64_t k, int64_t limit, float trust, const ScreenKernels& kernels);

    // Write the result.
    ScreenCounts finish(const Encoder& encoder,
                        float* values,     // OUT [rows, k]
                        int32_t* columns,  // OUT [rows, k]
                        bool* certified,   // OUT [rows]  by bounds; the others were scored whole
                        bool relu, int64_t threads);

    int64_t k() const { return k_; }

  private:
    void look_ahead(Row& row, const ProductRow& products, int64_t width) const override;
    void make_room(Row& row) const override;
    void screen(Row& row) const override;
    void settle(Row& row) const override;
    void take(int64_t i, const Row& row, const double* scores) override;
    float kth_lower(const Row& row) const;

    int64_t k_;
    float* values_ = nullptr;
    int32_t* columns_ = nullptr;
    bool relu_ = false;
};

}  // namespace saerl
