// The inner loops of the operations on sparse rows: what differs between instruction sets, and nothing else
// (row_kernels.h says why). AVX2 and AVX-512 give the same bits; plain code rounds product and sum apart where
// the machine has no fused multiply-add.
#pragma once

#include <cstdint>

namespace saerl {

struct SparseKernels {
    // Columns that share one mark of `drain`.
    static constexpr int64_t kBlock = 64;
    // Entries that `drain` may write beyond those it counts.
    static constexpr int64_t kSlack = 16;
    // Columns of a table that `accumulate` can take at once; any multiple of kPanelStep up to it.
    static constexpr int64_t kPanel = 64;
    static constexpr int64_t kPanelStep = 16;

    // Writes the numbers of `sums` that are not zero (NaN is none) and their columns, in order; returns how
    // many. Only blocks of kBlock columns whose mark is set are looked at. Leaves sums and marks zero.
    int64_t (*drain)(float* sums,     // INOUT [blocks * kBlock]
                     uint8_t* marks,  // INOUT [blocks]
                     int64_t blocks,
                     int32_t* columns,  // OUT [counted + kSlack]
                     float* values);    // OUT [counted + kSlack]

    // Divides each number by `divisor`; true when one of them is zero afterwards.
    bool (*divide)(float* values,  // INOUT [count]
                   int64_t count, float divisor);

    // totals[c] += values[e] * table[columns[e] * stride + c] for 0 <= c < width, entry after entry from
    // `begin` while columns[e] < limit. Returns the entry where it stopped, or `end`.
    int64_t (*accumulate)(const int32_t* columns, const float* values, int64_t begin, int64_t end,
                          int32_t limit, const float* table, int64_t stride, int64_t width,
                          float* totals);  // INOUT [width]

    // roots[e] = the square root of |values[e]|, with the sign of values[e].
    void (*root)(const float* values, int64_t count,
                 float* roots);  // OUT [count]

    // sum over e of (values[e] * weights[columns[e]])^2 in float64, in eight lanes, then lane by lane.
    double (*weighted_squares)(const int32_t* columns, const float* values, int64_t count,
                               const float* weights);

    // What is true of some entry of a row, of the three below.
    uint32_t (*glance)(const int32_t* columns, const float* values, int64_t count);
    static constexpr uint32_t kFalls = 1;      // a column is not above the one before it
    static constexpr uint32_t kNotFinite = 2;  // a value is NaN or infinite
    static constexpr uint32_t kZero = 4;       // a value is zero
};

extern const SparseKernels kPlainSparse;
#if defined(__x86_64__)
extern const SparseKernels kAvx2Sparse;
extern const SparseKernels kAvx512Sparse;
#endif

}  // namespace saerl
