#include "segment_pool.h"

#include <algorithm>

#include "../check.h"
#include "threads.h"

namespace saerl {
namespace {

constexpr int64_t kBlock = SparseKernels::kBlock;

// The dense row of one thread.
class PooledRow {
  public:
    PooledRow(const Segments& segments, Pooling pooling, const SparseKernels& kernels)
        : segments_(segments),
          pooling_(pooling),
          kernels_(kernels),
          blocks_((segments.latents + kBlock - 1) / kBlock),
          sums_(static_cast<size_t>(blocks_ * kBlock)),
          marks_(static_cast<size_t>(blocks_)) {
        if (pooling == Pooling::max || pooling == Pooling::count) seen_.resize(sums_.size());
    }

    // Appends the pooled row of segment `s`; returns the number of its entries.
    int64_t pool(int64_t s, Entries& out) {
        const int64_t begin = segments_.starts[s], end = segments_.stops[s];
        switch (pooling_) {
            case Pooling::sum:
            case Pooling::mean:
                add(begin, end);
                break;
            case Pooling::count:
                count(begin, end);
                break;
            case Pooling::max:
                if (!raise_from_zero(begin, end)) raise(begin, end, segments_.tokens[s]);
                break;
        }
        out.make_room(std::min(end - begin, segments_.latents) + SparseKernels::kSlack);
        int64_t written =
            kernels_.drain(sums_.data(), marks_.data(), blocks_, out.next_columns(), out.next_values());
        if (pooling_ == Pooling::mean) {
            written = divide(static_cast<float>(segments_.tokens[s]), written, out);
        }
        out.advance(written);
        return written;
    }

  private:
    void add(int64_t begin, int64_t end) {
        float* sums = sums_.data();
        uint8_t* marks = marks_.data();
        for (int64_t e = begin; e < end; ++e) {
            const int32_t column = segments_.columns[e];
            sums[column] += segments_.values[e];
            marks[column / kBlock] = 1;
        }
    }

    // counted in whole numbers: a float32 sum of ones would stand still at 2^24
    void count(int64_t begin, int64_t end) {
        for (int64_t e = begin; e < end; ++e) {
            const int32_t column = segments_.columns[e];
            seen_[column] += segments_.values[e] != 0;
            sums_[column] = static_cast<float>(seen_[column]);
            marks_[column / kBlock] = 1;
        }
        for (int64_t e = begin; e < end; ++e) seen_[segments_.columns[e]] = 0;
    }

    // Maxima of values none of which is negative or NaN; false when one is.
    bool raise_from_zero(int64_t begin, int64_t end) {
        float* sums = sums_.data();
        uint8_t* marks = marks_.data();
        bool fits = true;
        for (int64_t e = begin; e < end; ++e) {
            const int32_t column = segments_.columns[e];
            const float value = segments_.values[e];
            fits &= value >= 0;
            sums[column] = value > sums[column] ? value : sums[column];
            marks[column / kBlock] = 1;
        }
        return fits;
    }

    // Maxima of any values, whatever the row holds for these columns; it is marked already.
    void raise(int64_t begin, int64_t end, int64_t tokens) {
        for (int64_t e = begin; e < end; ++e) {
            const int32_t column = segments_.columns[e];
            const float value = segments_.values[e];
            float& largest = sums_[column];
            // a NaN is taken, and afterwards nothing is above it
            if (seen_[column]++ == 0 || value > largest || value != value) largest = value;
        }
        for (int64_t e = begin; e < end; ++e) {
            const int32_t column = segments_.columns[e];
            // a latent absent from some token is zero there
            if (seen_[column] != 0 && seen_[column] < tokens && sums_[column] < 0) sums_[column] = 0;
            seen_[column] = 0;
        }
    }

    // Divides what was just written; returns how many entries are left when those that became zero are gone.
    static int64_t divide(float divisor, int64_t written, Entries& out) {
        int32_t* columns = out.next_columns();
        float* values = out.next_values();
        int lost = 0;
        for (int64_t i = 0; i < written; ++i) {
            values[i] /= divisor;
            lost |= values[i] == 0;
        }
        if (!lost) return written;
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

// First segments of `parts` runs of segments with about as many entries each.
std::vector<int64_t> even_parts(const Segments& segments, int64_t parts) {
    const int64_t each_row = segments.latents / 8 + 1;  // reading a row out costs something too
    int64_t total = 0;
    for (int64_t s = 0; s < segments.segments; ++s)
        total += segments.stops[s] - segments.starts[s] + each_row;
    std::vector<int64_t> firsts = {0};
    int64_t passed = 0;
    for (int64_t s = 0; s < segments.segments; ++s) {
        passed += segments.stops[s] - segments.starts[s] + each_row;
        while (static_cast<int64_t>(firsts.size()) < parts &&
               passed >= total / parts * static_cast<int64_t>(firsts.size())) {
            firsts.push_back(s + 1);
        }
    }
    firsts.resize(static_cast<size_t>(parts), segments.segments);
    firsts.push_back(segments.segments);
    return firsts;
}

}  // namespace

void Entries::make_room(int64_t more) {
    if (size_ + more <= room_) return;
    room_ = std::max(2 * room_, size_ + more);
    std::unique_ptr<int32_t[]> columns(new int32_t[static_cast<size_t>(room_)]);
    std::unique_ptr<float[]> values(new float[static_cast<size_t>(room_)]);
    std::copy_n(columns_.get(), size_, columns.get());
    std::copy_n(values_.get(), size_, values.get());
    columns_ = std::move(columns);
    values_ = std::move(values);
}

SegmentPool::SegmentPool(const Segments& segments, Pooling pooling, const SparseKernels& kernels,
                         int64_t threads)
    : counts_(static_cast<size_t>(segments.segments)) {
    for (int64_t s = 0; s < segments.segments; ++s) {
        require(0 <= segments.starts[s] && segments.starts[s] <= segments.stops[s] &&
                    segments.stops[s] <= segments.entries,
                "segments must lie within the entries");
    }
    const int64_t parts = std::clamp<int64_t>(segments.segments, 1, threads);
    const std::vector<int64_t> firsts = even_parts(segments, parts);
    parts_.resize(static_cast<size_t>(parts));
    for_row_ranges(parts, threads, [&](int64_t begin, int64_t end) {
        for (int64_t part = begin; part < end; ++part) {
            PooledRow row(segments, pooling, kernels);
            Entries pooled;
            for (int64_t s = firsts[part]; s < firsts[part + 1]; ++s) counts_[s] = row.pool(s, pooled);
            parts_[part] = std::move(pooled);
        }
    });
}

int64_t SegmentPool::entries() const {
    int64_t total = 0;
    for (const int64_t count : counts_) total += count;
    return total;
}

void SegmentPool::write(int64_t* indptr, int32_t* columns, float* values, int64_t threads) const {
    indptr[0] = 0;
    for (int64_t s = 0; s < segments(); ++s) indptr[s + 1] = indptr[s] + counts_[s];
    std::vector<int64_t> firsts = {0};
    for (const Entries& part : parts_) firsts.push_back(firsts.back() + part.size());
    for_row_ranges(static_cast<int64_t>(parts_.size()), threads, [&](int64_t begin, int64_t end) {
        for (int64_t part = begin; part < end; ++part) {
            std::copy_n(parts_[part].columns(), parts_[part].size(), columns + firsts[part]);
            std::copy_n(parts_[part].values(), parts_[part].size(), values + firsts[part]);
        }
    });
}

}  // namespace saerl
