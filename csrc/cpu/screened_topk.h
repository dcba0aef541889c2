// The k largest scores of each row by int8 screening (screening.h).
//
// Floor while products come: the k-th largest of what scores likely are at least (screen_kernels.h). At the end the k
// likeliest columns are scored, and the least of these k scores is a floor that is proved: what else reaches it is
// settled. Where the proved floor is below the likely one, that was too high, and the row is scored whole.
//
// Descending; ties to the lower column; a row with a NaN score gives NaN values and columns 0..k-1.
#pragma once

#include <cstdint>

#include "screening.h"

namespace saerl {

class ScreenedTopK : public Screen {
  public:
    ScreenedTopK(int64_t rows, int64_t k, int64_t limit, const ScreenKernels& kernels);

    // Write the result.
    ScreenCounts finish(const Encoder& encoder,
                        float* values,     // OUT [rows, k]
                        int32_t* columns,  // OUT [rows, k]
                        bool relu, int64_t threads);

    int64_t k() const { return k_; }

  private:
    void make_room(Row& row) const override;
    float kth_likely(const Row& row) const;
    void choose(Row& row) const;
    void prove(Row& row) const;

    int64_t k_;
};

}  // namespace saerl
