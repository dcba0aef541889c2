// Centroids as the products with rows want them.
//
//     distance[k] = bias[k] + factor * (x . c_k)     bias |c_k|^2, factor -2,   or bias 0, factor -1 and |c_k| = 1
//
// They are packed into panels (sparse_product.h). A centroid that is not finite has the bias NaN: sparse rows would
// pass over its infinity where they hold zero.
#pragma once

#include <cstdint>
#include <vector>

#include "lines.h"
#include "nearest.h"
#include "panels.h"

namespace saerl {

enum class Metric { euclidean, cosine };

class Centroids {
  public:
    Centroids(const float* rows,  // IN  [clusters, latents]
              int64_t clusters, int64_t latents, Metric metric);

    Panels panels() const { return {numbers_.data(), width_, clusters_}; }
    const float* bias() const { return bias_.data(); }  // [panels * width], infinite for the filling
    float factor() const { return metric_ == Metric::cosine ? -1.0f : -2.0f; }

    // |x - c|^2 or 1 - cosine of a row with |x|^2 = squares to its nearest centroid; never below 0.
    float score(const Nearest& nearest, double squares) const;

  private:
    void pack(const float* rows, int64_t latents);

    Metric metric_;
    int64_t clusters_;
    int64_t width_;
    Lines<float> numbers_;
    std::vector<float> bias_;
};

// |x|^2 in float64, in eight lanes, then lane by lane.
double sum_of_squares(const float* x, int64_t count);

}  // namespace saerl
