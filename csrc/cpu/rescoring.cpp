#include "rescoring.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "threads.h"

namespace saerl {
namespace {

constexpr int64_t kWholeRows = 16;  // rows whose scores [rows, latents] are held at a time

struct Pair {
    Candidate* candidate;
    int32_t row;
    int32_t latent;
};

// Memory for one row of w in float64, at the start of a cache line.
class WideRow {
  public:
    explicit WideRow(int64_t width) : room_(static_cast<size_t>(width) + kLine) {}
    double* data() {
        const auto address = reinterpret_cast<std::uintptr_t>(room_.data());
        return room_.data() + (kLine - address / sizeof(double) % kLine) % kLine;
    }

  private:
    static constexpr size_t kLine = 64 / sizeof(double);
    std::vector<double> room_;
};

// The pairs in the order of their latents, and in each latent of their rows.
std::vector<Pair> by_latent(const std::vector<RowCandidates>& rows, int64_t latents) {
    std::vector<int64_t> places(static_cast<size_t>(latents) + 1);
    for (const RowCandidates& row : rows) {
        for (const Candidate* c = row.begin; c < row.end; ++c) ++places[c->column + 1];
    }
    for (int64_t j = 0; j < latents; ++j) places[j + 1] += places[j];
    std::vector<Pair> pairs(static_cast<size_t>(places[latents]));
    for (const RowCandidates& row : rows) {
        for (Candidate* c = row.begin; c < row.end; ++c)
            pairs[places[c->column]++] = {c, static_cast<int32_t>(row.row), c->column};
    }
    return pairs;
}

bool better(const Candidate& one, const Candidate& other) {
    return one.score > other.score || (one.score == other.score && one.column < other.column);
}

}  // namespace

double Rescoring::score_of(int64_t row, int64_t latent, const double* w, int64_t next_row) const {
    return score_of_dot(kernels_.dot(row_of(row), encoder_.shift, w, encoder_.width, row_of(next_row)),
                        latent);
}

double Rescoring::score_of_dot(double dot, int64_t latent) const {
    const double score = dot + static_cast<double>(encoder_.bias[latent]);
    return encoder_.scale ? score * static_cast<double>(encoder_.scale[latent]) : score;
}

void Rescoring::score(const std::vector<RowCandidates>& rows) const {
    const std::vector<Pair> pairs = by_latent(rows, encoder_.latents);
    for_row_ranges(static_cast<int64_t>(pairs.size()), threads_, [&](int64_t begin, int64_t end) {
        WideRow wide(encoder_.width);
        double* w = wide.data();
        int64_t widened = -1;
        for (int64_t n = begin; n < end; ++n) {
            const int64_t latent = pairs[n].latent;
            if (latent != widened) kernels_.widen(encoder_.w + latent * encoder_.width, encoder_.width, w);
            widened = latent;
            const int64_t next_row = pairs[n + 1 < end ? n + 1 : n].row;
            pairs[n].candidate->score = score_of(pairs[n].row, latent, w, next_row);
        }
    });
}

double Rescoring::float_score_of(int64_t row, int64_t latent, int64_t next_row) const {
    const float* w = encoder_.w + latent * encoder_.width;
    const float* shift = encoder_.float_shift;
    return score_of_dot(kernels_.float_dot(row_of(row), shift, w, encoder_.width, row_of(next_row)), latent);
}

void Rescoring::score_in_float32(const std::vector<RowCandidates>& rows) const {
    const std::vector<Pair> pairs = by_latent(rows, encoder_.latents);
    for_row_ranges(static_cast<int64_t>(pairs.size()), threads_, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
            const int64_t next_row = pairs[n + 1 < end ? n + 1 : n].row;
            pairs[n].candidate->score = float_score_of(pairs[n].row, pairs[n].latent, next_row);
        }
    });
}

double Rescoring::float_error(int64_t row, int64_t latent, double score) const {
    const double length =
        static_cast<double>(encoder_.size[row]) * static_cast<double>(encoder_.reach[latent]);
    return float_dot_error(encoder_.width) * length + 0x1p-50 * std::fabs(score);
}

std::vector<Candidate> Rescoring::reaching(int64_t row, const double* scores,
                                           const std::function<double(int64_t)>& floor) const {
    std::vector<Candidate> kept;
    for (int64_t j = 0; j < encoder_.latents; ++j) {
        const bool below = scores[j] + float_error(row, j, scores[j]) < floor(j);
        if (!below) kept.push_back({0, 0, static_cast<int32_t>(j), 0});
    }
    return kept;
}

std::vector<Candidate> Rescoring::reaching_kth(int64_t row, const double* scores, int64_t k) const {
    std::vector<double> lower(static_cast<size_t>(encoder_.latents));
    for (int64_t j = 0; j < encoder_.latents; ++j) {
        const double least = scores[j] - float_error(row, j, scores[j]);
        // a bound that is not a number bounds nothing
        lower[j] = std::isnan(least) ? -std::numeric_limits<double>::infinity() : least;
    }
    std::nth_element(lower.begin(), lower.begin() + (k - 1), lower.end(), std::greater<double>());
    const double kth = lower[k - 1];
    return reaching(row, scores, [kth](int64_t) { return kth; });
}

void Rescoring::score_whole(const std::vector<int64_t>& rows, const Choose& choose, const Take& take) const {
    const int64_t total = static_cast<int64_t>(rows.size()), latents = encoder_.latents;
    for (int64_t first = 0; first < total; first += kWholeRows) {
        const int64_t count = std::min(kWholeRows, total - first);
        const int64_t* chosen = rows.data() + first;
        std::vector<double> scores(static_cast<size_t>(count * latents));
        for_row_ranges(latents, threads_, [&](int64_t begin, int64_t end) {
            for (int64_t j = begin; j < end; ++j) {
                for (int64_t n = 0; n < count; ++n) {
                    scores[n * latents + j] = float_score_of(chosen[n], j, chosen[n + 1 < count ? n + 1 : 0]);
                }
            }
        });
        std::vector<std::vector<Candidate>> kept(static_cast<size_t>(count));
        for_row_ranges(count, threads_, [&](int64_t begin, int64_t end) {
            for (int64_t n = begin; n < end; ++n) kept[n] = choose(chosen[n], scores.data() + n * latents);
        });
        std::vector<RowCandidates> pairs;
        for (int64_t n = 0; n < count; ++n) {
            pairs.push_back({chosen[n], kept[n].data(), kept[n].data() + kept[n].size()});
        }
        score(pairs);
        for_row_ranges(count, threads_, [&](int64_t begin, int64_t end) {
            for (int64_t n = begin; n < end; ++n) take(chosen[n], kept[n]);
        });
    }
}

void write_best(std::vector<Candidate>& candidates, int64_t k, bool relu, float* values, int32_t* columns) {
    const bool nan = std::any_of(candidates.begin(), candidates.end(),
                                 [](const Candidate& c) { return std::isnan(c.score); });
    if (nan) {
        std::fill(values, values + k, std::numeric_limits<float>::quiet_NaN());
        for (int64_t i = 0; i < k; ++i) columns[i] = static_cast<int32_t>(i);
        return;
    }
    std::nth_element(candidates.begin(), candidates.begin() + (k - 1), candidates.end(), better);
    std::sort(candidates.begin(), candidates.begin() + k, better);
    for (int64_t i = 0; i < k; ++i) {
        const double score = candidates[i].score;
        values[i] = relu && !(score > 0) ? 0.0f : static_cast<float>(score);
        columns[i] = candidates[i].column;
    }
}

void tally(const std::vector<Candidate>& candidates, ScreenCounts& counts) {
    counts.scored = static_cast<int64_t>(candidates.size());
    for (const Candidate& c : candidates) {
        const double spread = (static_cast<double>(c.upper) - c.likely) / (1.0 + kTrust);
        const double error = std::fabs(c.score - (c.upper - spread));
        if (!std::isfinite(error)) continue;  // a latent without bounds
        counts.outside += error > spread;
        if (error > 0) counts.worst = std::max(counts.worst, error / spread);
    }
}

}  // namespace saerl
