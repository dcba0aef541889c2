#include "segment_pool.h"

#include <algorithm>
#include <stdexcept>

#include "../check.h"
#include "threads.h"

namespace saerl {
namespace {

constexpr int64_t kBlock = SparseKernels::kBlock;
constexpr int64_t kSlack = SparseKernels::kSlack;
// columns checked at once: they are still in the nearest cache when they are used
constexpr int64_t kChunk = 64;
// entries per block from which on all blocks are read: at random, one in fifty has none then
constexpr int64_t kCrowded = 4;
// float32 counts ones exactly up to here
constexpr int64_t kExactOnes = int64_t{1} << 24;
// entries that one thread may write in one wave: they wait in the second-level cache for the copy
constexpr int64_t kWave = int64_t{1} << 17;

// The dense row of one thread.
class PooledRow {
  public:
    PooledRow(const Segments& segments, Pooling pooling, const SparseKernels& kernels)
        : segments_(segments),
          pooling_(pooling),
          kernels_(kernels),
          blocks_((segments.latents + kBlock - 1) / kBlock),
          sums_(static_cast<size_t>(blocks_ * kBlock)),
          marks_(static_cast<size_t>(blocks_)) {}

    // Writes the pooled row of segment `s`, and up to kSlack entries of nothing; returns how many it has.
    int64_t pool(int64_t s, int32_t* columns, float* values) {
        const int64_t begin = segments_.starts[s], end = segments_.stops[s];
        switch (pooling_) {
            case Pooling::sum:
            case Pooling::mean:
                add(begin, end);
                break;
            case Pooling::count:
                if (end - begin < kExactOnes) {
                    add_ones(begin, end);
                } else {
                    count(begin, end);
                }
                break;
            case Pooling::max:
                if (!raise_from_zero(begin, end)) raise(begin, end, segments_.tokens[s]);
                break;
        }
        mark(begin, end);
        const int64_t written = kernels_.drain(sums_.data(), marks_.data(), blocks_, columns, values);
        if (pooling_ != Pooling::mean) return written;
        return divide(static_cast<float>(segments_.tokens[s]), written, columns, values);
    }

  private:
    // body(column, value) for the entries in order; a column is seen to lie in the row before it is used.
    template <typename Body>
    void each_entry(int64_t begin, int64_t end, Body body) const {
        const int32_t* columns = segments_.columns;
        const float* values = segments_.values;
        for (int64_t first = begin; first < end; first += kChunk) {
            const int64_t last = std::min(first + kChunk, end);
            check_columns(columns + first, last - first);
            for (int64_t e = first; e < last; ++e) body(columns[e], values[e]);
        }
    }

    void check_columns(const int32_t* columns, int64_t count) const {
        const uint32_t largest = static_cast<uint32_t>(segments_.latents - 1);
        uint32_t signs = 0;
        // the first sign tells a column below the row, the second one beyond it
        for (int64_t i = 0; i < count; ++i) {
            const uint32_t column = static_cast<uint32_t>(columns[i]);
            signs |= column | (largest - column);
        }
        if (signs >> 31) throw std::out_of_range("saerl_fast._native: a column lies outside of the latents");
    }

    void add(int64_t begin, int64_t end) {
        float* sums = sums_.data();
        each_entry(begin, end, [sums](int32_t column, float value) { sums[column] += value; });
    }

    void add_ones(int64_t begin, int64_t end) {
        float* sums = sums_.data();
        each_entry(begin, end,
                   [sums](int32_t column, float value) { sums[column] += value != 0 ? 1.0f : 0.0f; });
    }

    // counted in whole numbers: a float32 sum of ones would stand still at kExactOnes
    void count(int64_t begin, int64_t end) {
        uint32_t* seen = none_seen();
        each_entry(begin, end, [seen](int32_t column, float value) { seen[column] += value != 0; });
        for (int64_t e = begin; e < end; ++e) {
            const int32_t column = segments_.columns[e];
            sums_[column] += static_cast<float>(seen[column]);
            seen[column] = 0;
        }
    }

    // Maxima of values none of which is negative or NaN; false when one is.
    bool raise_from_zero(int64_t begin, int64_t end) {
        float* sums = sums_.data();
        bool fits = true;
        each_entry(begin, end, [sums, &fits](int32_t column, float value) {
            fits &= value >= 0;
            sums[column] = value > sums[column] ? value : sums[column];
        });
        return fits;
    }

    // Maxima of any values, whatever the row holds for these columns.
    void raise(int64_t begin, int64_t end, int64_t tokens) {
        uint32_t* seen = none_seen();
        float* sums = sums_.data();
        each_entry(begin, end, [sums, seen](int32_t column, float value) {
            // a NaN is taken, and afterwards nothing is above it
            if (seen[column]++ == 0 || value > sums[column] || value != value) sums[column] = value;
        });
        for (int64_t e = begin; e < end; ++e) {
            const int32_t column = segments_.columns[e];
            // a latent absent from some token is zero there
            if (seen[column] != 0 && seen[column] < tokens && sums[column] < 0) sums[column] = 0;
            seen[column] = 0;
        }
    }

    // All 0, and left so by who uses it.
    uint32_t* none_seen() {
        seen_.resize(sums_.size());
        return seen_.data();
    }

    void mark(int64_t begin, int64_t end) {
        uint8_t* marks = marks_.data();
        if (end - begin >= kCrowded * blocks_) {
            std::fill_n(marks, blocks_, uint8_t{1});
        } else {
            for (int64_t e = begin; e < end; ++e) marks[segments_.columns[e] / kBlock] = 1;
        }
    }

    // Divides what was just written; returns how many entries are left when those that became zero are gone.
    int64_t divide(float divisor, int64_t written, int32_t* columns, float* values) const {
        if (!kernels_.divide(values, written, divisor)) return written;
        int64_t left = 0;
        for (int64_t i = 0; i < written; ++i) {
            columns[left] = columns[i];
            values[left] = values[i];
            left += values[i] != 0;
        }
        return left;
    }

    const Segments& segments_;
    Pooling pooling_;
    const SparseKernels& kernels_;
    int64_t blocks_;
    std::vector<float> sums_;
    std::vector<uint8_t> marks_;
    std::vector<uint32_t> seen_;  // entries per latent
};

// The most entries that the segments first .. last can have together once pooled.
int64_t most_entries(const Segments& segments, int64_t first, int64_t last) {
    int64_t most = 0;
    for (int64_t s = first; s < last; ++s) {
        most += std::min(segments.stops[s] - segments.starts[s], segments.latents);
    }
    return most;
}

// Where the wave ends that begins with segment `first`.
int64_t end_of_wave(const Segments& segments, int64_t first, int64_t threads) {
    if (threads == 1) return segments.segments;
    int64_t last = first, most = 0;
    while (last < segments.segments && (last - first < threads || most < threads * kWave)) {
        most += most_entries(segments, last, last + 1);
        ++last;
    }
    return last;
}

// First segments of `parts` runs of the segments first .. last, with about as many entries each.
std::vector<int64_t> even_parts(const Segments& segments, int64_t first, int64_t last, int64_t parts) {
    const int64_t each_row = segments.latents / 8 + 1;  // reading a row out costs something too
    int64_t total = 0;
    for (int64_t s = first; s < last; ++s) total += segments.stops[s] - segments.starts[s] + each_row;
    std::vector<int64_t> firsts = {first};
    int64_t passed = 0;
    for (int64_t s = first; s < last; ++s) {
        passed += segments.stops[s] - segments.starts[s] + each_row;
        while (static_cast<int64_t>(firsts.size()) < parts &&
               passed >= total / parts * static_cast<int64_t>(firsts.size())) {
            firsts.push_back(s + 1);
        }
    }
    firsts.resize(static_cast<size_t>(parts + 1), last);
    return firsts;
}

// What one thread needs: its dense row, and room for what it writes in one wave.
struct Worker {
    PooledRow row;
    Array<int32_t> columns;
    Array<float> values;
    int64_t written = 0;

    void make_room(int64_t entries) {
        if (entries <= columns.size()) return;
        columns = Array<int32_t>(entries);
        values = Array<float>(entries);
    }
};

// Pools the segments of one wave behind the `done` entries that are there; returns how many there are then.
int64_t pool_wave(const Segments& segments, const std::vector<int64_t>& firsts, std::vector<Worker>& workers,
                  int64_t done, Pooled& pooled) {
    const int64_t threads = static_cast<int64_t>(workers.size());
    for_row_ranges(threads, threads, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
            Worker& worker = workers[t];
            if (t > 0) worker.make_room(most_entries(segments, firsts[t], firsts[t + 1]) + kSlack);
            int32_t* columns = t > 0 ? worker.columns.data() : pooled.columns.data() + done;
            float* values = t > 0 ? worker.values.data() : pooled.values.data() + done;
            worker.written = 0;
            for (int64_t s = firsts[t]; s < firsts[t + 1]; ++s) {
                pooled.counts[s] = worker.row.pool(s, columns + worker.written, values + worker.written);
                worker.written += pooled.counts[s];
            }
        }
    });
    std::vector<int64_t> places = {done};
    for (const Worker& worker : workers) places.push_back(places.back() + worker.written);
    for_row_ranges(threads - 1, threads - 1, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin + 1; t < end + 1; ++t) {
            std::copy_n(workers[t].columns.data(), workers[t].written, pooled.columns.data() + places[t]);
            std::copy_n(workers[t].values.data(), workers[t].written, pooled.values.data() + places[t]);
        }
    });
    return places.back();
}

}  // namespace

Pooled pool_segments(const Segments& segments, Pooling pooling, const SparseKernels& kernels,
                     int64_t threads) {
    for (int64_t s = 0; s < segments.segments; ++s) {
        require(0 <= segments.starts[s] && segments.starts[s] <= segments.stops[s] &&
                    segments.stops[s] <= segments.entries,
                "segments must lie within the entries");
    }
    const int64_t room = most_entries(segments, 0, segments.segments) + kSlack;
    Pooled pooled = {std::vector<int64_t>(static_cast<size_t>(segments.segments)), Array<int32_t>(room),
                     Array<float>(room)};
    const int64_t used = std::clamp<int64_t>(segments.segments, 1, threads);
    std::vector<Worker> workers;
    for (int64_t t = 0; t < used; ++t) workers.push_back({PooledRow(segments, pooling, kernels), {}, {}});
    int64_t done = 0;
    for (int64_t first = 0; first < segments.segments;) {
        const int64_t last = end_of_wave(segments, first, used);
        done = pool_wave(segments, even_parts(segments, first, last, used), workers, done, pooled);
        first = last;
    }
    pooled.columns.cut(done);
    pooled.values.cut(done);
    return pooled;
}

}  // namespace saerl
