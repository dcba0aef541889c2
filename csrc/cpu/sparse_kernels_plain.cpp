// Plain C++ body of the loops on sparse rows.
#include "sparse_kernels.h"

#include "sparse_loops.h"

namespace saerl {
namespace {

inline float multiply_add(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

int64_t drain(float* sums, uint8_t* marks, int64_t blocks, int32_t* columns, float* values) {
    int64_t count = 0;
    for (int64_t block = 0; block < blocks; ++block) {
        if (!marks[block]) continue;
        marks[block] = 0;
        const int64_t first = block * SparseKernels::kBlock;
        for (int64_t j = first; j < first + SparseKernels::kBlock; ++j) {
            columns[count] = static_cast<int32_t>(j);
            values[count] = sums[j];
            count += sums[j] != 0;
            sums[j] = 0;
        }
    }
    return count;
}

bool divide(float* values, int64_t count, float divisor) {
    bool zero = false;
    for (int64_t i = 0; i < count; ++i) {
        values[i] /= divisor;
        zero |= values[i] == 0;
    }
    return zero;
}

int64_t accumulate(const int32_t* columns, const float* values, int64_t begin, int64_t end, int32_t limit,
                   const float* table, int64_t stride, int64_t width, float* totals) {
    int64_t e = begin;
    for (; e < end && columns[e] < limit; ++e) {
        const float* row = table + columns[e] * stride;
        const float value = values[e];
        for (int64_t c = 0; c < width; ++c) totals[c] = multiply_add(value, row[c], totals[c]);
    }
    return e;
}

void root(const float* values, int64_t count, float* roots) {
    for (int64_t i = 0; i < count; ++i) roots[i] = signed_root(values[i]);
}

}  // namespace

const SparseKernels kPlainSparse = {drain, divide, accumulate, root, weighted_squares, glance};

}  // namespace saerl
