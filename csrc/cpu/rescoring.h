// Float64 scores of chosen (row, latent) pairs, and the select among them (screening.h has the equation).
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "screening.h"

namespace saerl {

class Rescoring {
  public:
    Rescoring(const Encoder& encoder, const ScreenKernels& kernels, int64_t threads)
        : encoder_(encoder), kernels_(kernels), threads_(threads) {}

    // Fill in the scores, latent by latent.
    void score(const std::vector<RowCandidates>& rows) const;
    void score_in_float32(const std::vector<RowCandidates>& rows) const;

    // A bound of the error of a score in float32; infinite or NaN where the row or the latent has none.
    double float_error(int64_t row, int64_t latent, double score) const;

    // Score all latents of these rows in float32, a few rows at a time. choose(row, scores [latents]) gives what these
    // scores do not rule out, take(row, candidates) gets it scored in float64.
    using Choose = std::function<std::vector<Candidate>(int64_t row, const double* scores)>;
    using Take = std::function<void(int64_t row, std::vector<Candidate>& candidates)>;
    void score_whole(const std::vector<int64_t>& rows, const Choose& choose, const Take& take) const;

    // The latents of one row whose score may reach floor(latent), by scores [latents] in float32; ascending.
    std::vector<Candidate> reaching(int64_t row, const double* scores,
                                    const std::function<double(int64_t)>& floor) const;
    // Those that may be among its k largest.
    std::vector<Candidate> reaching_kth(int64_t row, const double* scores, int64_t k) const;

  private:
    // w: the row of the latent in float64; next_row: the row to be scored next
    double score_of_dot(double dot, int64_t latent) const;
    double score_of(int64_t row, int64_t latent, const double* w, int64_t next_row) const;
    double float_score_of(int64_t row, int64_t latent, int64_t next_row) const;
    const float* row_of(int64_t row) const { return encoder_.x + row * encoder_.width; }

    Encoder encoder_;
    const ScreenKernels& kernels_;
    int64_t threads_;
};

// Sort the candidates by score and write the first k. The order of the candidates changes.
void write_best(std::vector<Candidate>& candidates, int64_t k, bool relu,
                float* values,      // OUT [k]
                int32_t* columns);  // OUT [k]

// Hold the scores against their bounds.
void tally(const std::vector<Candidate>& candidates, ScreenCounts& counts);

}  // namespace saerl
