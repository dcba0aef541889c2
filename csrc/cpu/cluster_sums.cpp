#include "cluster_sums.h"

#include <algorithm>
#include <vector>

#include "../check.h"
#include "lines.h"
#include "threads.h"

namespace saerl {
namespace {

constexpr int64_t kCacheNumbers = 1 << 17;  // sums of all clusters over a tile of columns: 1 MB
constexpr int64_t kLineNumbers = 8;         // sums that share a line of the cache
constexpr int64_t kNarrowest = 16;          // columns of a tile: a line of the cache

// The rows of cluster k, ascending: order[firsts[k]] .. order[firsts[k + 1]].
struct ByCluster {
    std::vector<int64_t> firsts;
    std::vector<int64_t> order;
};

void count_rows(const int32_t* labels, int64_t rows, int64_t clusters, int64_t* counts) {
    std::fill_n(counts, clusters, 0);
    for (int64_t i = 0; i < rows; ++i) {
        require(labels[i] >= 0 && labels[i] < clusters, "labels must name clusters");
        ++counts[labels[i]];
    }
}

ByCluster list_by_cluster(const int32_t* labels, int64_t rows, int64_t clusters, int64_t* counts) {
    count_rows(labels, rows, clusters, counts);
    ByCluster listed{std::vector<int64_t>(static_cast<size_t>(clusters) + 1),
                     std::vector<int64_t>(static_cast<size_t>(rows))};
    for (int64_t k = 0; k < clusters; ++k) listed.firsts[k + 1] = listed.firsts[k] + counts[k];
    std::vector<int64_t> next(listed.firsts.begin(), listed.firsts.end() - 1);
    for (int64_t i = 0; i < rows; ++i) listed.order[next[labels[i]]++] = i;
    return listed;
}

// First items of `parts` runs of items that weigh about the same.
std::vector<int64_t> even_runs(const std::vector<int64_t>& weights, int64_t parts) {
    int64_t total = 0, passed = 0;
    for (const int64_t weight : weights) total += weight;
    std::vector<int64_t> firsts = {0};
    for (size_t i = 0; i < weights.size(); ++i) {
        passed += weights[i];
        while (static_cast<int64_t>(firsts.size()) < parts &&
               passed >= total / parts * static_cast<int64_t>(firsts.size())) {
            firsts.push_back(static_cast<int64_t>(i) + 1);
        }
    }
    firsts.resize(static_cast<size_t>(parts), static_cast<int64_t>(weights.size()));
    firsts.push_back(static_cast<int64_t>(weights.size()));
    return firsts;
}

}  // namespace

void cluster_sums_sparse(const SparseRows& rows, const int32_t* labels, int64_t clusters, int64_t threads,
                         float* sums, int64_t* counts) {
    const ByCluster listed = list_by_cluster(labels, rows.rows, clusters, counts);
    std::vector<int64_t> weights(static_cast<size_t>(clusters), rows.latents / 8 + 1);
    for (int64_t i = 0; i < rows.rows; ++i) weights[labels[i]] += rows.indptr[i + 1] - rows.indptr[i];
    const int64_t parts = std::clamp<int64_t>(clusters, 1, threads);
    const std::vector<int64_t> firsts = even_runs(weights, parts);
    for_row_ranges(parts, threads, [&](int64_t begin, int64_t end) {
        std::vector<double> sum(static_cast<size_t>(rows.latents));
        for (int64_t k = firsts[begin]; k < firsts[end]; ++k) {
            std::fill(sum.begin(), sum.end(), 0.0);
            for (int64_t place = listed.firsts[k]; place < listed.firsts[k + 1]; ++place) {
                const int64_t row = listed.order[place];
                for (int64_t e = rows.indptr[row]; e < rows.indptr[row + 1]; ++e) {
                    sum[rows.columns[e]] += rows.values[e];
                }
            }
            std::copy(sum.begin(), sum.end(), sums + k * rows.latents);
        }
    });
}

void cluster_sums_dense(const float* rows, int64_t count, int64_t width, int64_t stride,
                        const int32_t* labels, int64_t clusters, const DenseKernels& kernels, int64_t threads,
                        float* sums, int64_t* counts) {
    count_rows(labels, count, clusters, counts);
    const int64_t share = (width + threads - 1) / threads;
    const int64_t tile = std::max(kNarrowest, std::min(share, kCacheNumbers / clusters));
    const int64_t tiles = (width + tile - 1) / tile;
    for_row_ranges(tiles, threads, [&](int64_t begin, int64_t end) {
        const int64_t apart = (tile + kLineNumbers - 1) / kLineNumbers * kLineNumbers;
        Lines<double> sum(clusters * apart);
        for (int64_t left = begin * tile; left < std::min(end * tile, width); left += tile) {
            const int64_t columns = std::min(tile, width - left);
            std::fill_n(sum.data(), clusters * apart, 0.0);
            for (int64_t i = 0; i < count; ++i) {
                kernels.add(rows + i * stride + left, columns, &sum[labels[i] * apart]);
            }
            for (int64_t k = 0; k < clusters; ++k) {
                std::copy_n(&sum[k * apart], columns, sums + k * width + left);
            }
        }
    });
}

}  // namespace saerl
