// The inner loops of the top-k select. Everything that differs between instruction sets is in them; the rest
// of the select (topk_select.cpp) is the same for all. Files that are compiled for a newer instruction set
// hold these functions and nothing else, no library template above all: the linker could choose that copy for
// the whole program, and it would then fail on an older machine.
#pragma once

#include <cstdint>

namespace saerl {

// One row of scores, or a stretch of it: score(j) = (scores[j] + bias[j]) * scale[j].
struct ScoreRow {
    const float* scores;  // IN  [width]
    const float* bias;    // IN  [width] or null
    const float* scale;   // IN  [width] or null
};

// Scores that reached the floor, in the order of their columns.
struct Hits {
    static constexpr int64_t kRoom = 256;
    static constexpr int64_t kWidestStep = 64;  // columns that one step of a kernel may append at once

    float values[kRoom];
    int32_t columns[kRoom];
    int64_t count = 0;
    bool nan = false;
};

// static, so that no copy compiled for a newer instruction set leaves its file
static inline bool full(const Hits& hits) {
    return hits.count > Hits::kRoom - Hits::kWidestStep;
}

struct RowKernels {
    const char* name;

    // maxima[g] = the largest score among the columns g * group .. of [0, width); NaN is passed over and
    // reported by returning true. `group` is a multiple of 16.
    bool (*group_maxima)(const ScoreRow& row, int64_t width, int64_t group, float* maxima);

    // maxima[g] = the largest score among the columns g, g + groups and so on of [0, width), but for a few at the end; NaN
    // is passed over. `groups` is a multiple of 16 and not above `width`.
    void (*strided_maxima)(const ScoreRow& row, int64_t width, int64_t groups, float* maxima);

    // The k-th largest of them (row_loops.h).
    float (*kth_largest)(const float* values, int64_t count, int64_t k, int32_t* scratch);

    // Appends scores >= floor among the columns [begin, end) to `hits`. Returns the column where it stopped: `end`, or
    // earlier because `hits` is full or a NaN was met (hits.nan).
    int64_t (*collect)(const ScoreRow& row, int64_t begin, int64_t end, float floor, Hits& hits);

    // Hits become keys (row_loops.h).
    void (*pack_keys)(const Hits& hits, int64_t first_column, uint64_t* keys);

    // Leaves the k best keys (row_loops.h).
    uint32_t (*keep_best)(uint64_t* keys, int64_t count, int64_t k, int32_t* ordered);

    // Places in descending order (row_loops.h), quicker than sorting for up to `rank_limit` keys.
    void (*rank_keys)(const uint64_t* keys, int64_t count, int64_t* ranks);
    int64_t rank_limit;
};

extern const RowKernels kPlainKernels;
#if defined(__x86_64__)
extern const RowKernels kAvx2Kernels;
extern const RowKernels kAvx512Kernels;
#endif

}  // namespace saerl
