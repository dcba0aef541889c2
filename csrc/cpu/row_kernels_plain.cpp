// Plain C++ body of the loops; compilers vectorise the 16-wide inner ones for any machine.
#include "row_kernels.h"
#include "row_loops.h"

namespace saerl {
namespace {

constexpr int64_t kStep = 16;

inline float score(const ScoreRow& row, int64_t j) {
    float value = row.scores[j];
    if (row.bias) value += row.bias[j];
    if (row.scale) value *= row.scale[j];
    return value;
}

// the larger of two; a NaN `value` leaves `largest`
inline float larger(float value, float largest) {
    return value > largest ? value : largest;
}

bool group_maxima(const ScoreRow& row, int64_t width, int64_t group, float* maxima) {
    int unordered = 0;
    for (int64_t begin = 0; begin < width; begin += group) {
        const int64_t end = begin + group < width ? begin + group : width;
        float lanes[kStep];
        for (float& lane : lanes) lane = -__builtin_inff();
        int64_t j = begin;
        for (; j + kStep <= end; j += kStep) {
            for (int64_t lane = 0; lane < kStep; ++lane) {
                const float value = score(row, j + lane);
                unordered |= value != value;
                lanes[lane] = larger(value, lanes[lane]);
            }
        }
        for (; j < end; ++j) {
            const float value = score(row, j);
            unordered |= value != value;
            lanes[0] = larger(value, lanes[0]);
        }
        *maxima = lanes[0];
        for (const float lane : lanes) *maxima = larger(lane, *maxima);
        ++maxima;
    }
    return unordered != 0;
}

void strided_maxima(const ScoreRow& row, int64_t width, int64_t groups, float* maxima) {
    for (int64_t g = 0; g < groups; ++g) maxima[g] = -__builtin_inff();
    for (int64_t j = 0; j < width; ++j) maxima[j % groups] = larger(score(row, j), maxima[j % groups]);
}

int64_t collect(const ScoreRow& row, int64_t begin, int64_t end, float floor, Hits& hits) {
    for (int64_t j = begin; j < end; j += kStep) {
        if (full(hits)) return j;
        const int64_t stop = j + kStep < end ? j + kStep : end;
        int any = 0;
        for (int64_t i = j; i < stop; ++i) any |= !(score(row, i) < floor);  // so written, NaN counts
        if (!any) continue;
        for (int64_t i = j; i < stop; ++i) {
            const float value = score(row, i);
            if (value != value) {
                hits.nan = true;
                return i;
            }
            if (value < floor) continue;
            hits.values[hits.count] = value;
            hits.columns[hits.count++] = static_cast<int32_t>(i);
        }
    }
    return end;
}

}  // namespace

const RowKernels kPlainKernels = {
    "plain", group_maxima, strided_maxima, kth_largest, collect, pack_keys, keep_best, rank_keys, 0};

}  // namespace saerl
