// The CUDA kernels behind plain functions: device addresses, sizes and strides in elements, the stream to
// queue on. They return without waiting, and give a CUDA error code (0 = queued). Another binding needs only
// this file.
#pragma once

#include <cstdint>

#ifdef __cplusplus
extern "C" {
#endif

// Most kept scores per row; more do not fit the candidates' place in shared memory.
#define SAERL_TOPK_SELECT_MAX_K 512

// Most groups per row whose maxima saerl_topk_finish takes.
#define SAERL_TOPK_SELECT_MAX_GROUPS 2048

// values[i], columns[i] = the k largest of (scores[i][j] + bias[j]) * scale[j], as in cpu/topk_select.h.
int saerl_topk_select(const float* scores,  // IN  [rows, width], columns side by side
                      int64_t rows, int64_t width, int64_t row_stride,
                      const float* bias,   // IN  [width] or null
                      const float* scale,  // IN  [width] or null
                      int64_t k,           // 1 .. min(width, SAERL_TOPK_SELECT_MAX_K)
                      int relu,            // write max(value, 0)
                      float* values,       // OUT [rows, k]
                      int32_t* columns,    // OUT [rows, k]
                      int device, void* stream);

// The same where bias and scale are in the scores and the maxima of groups of 2^group_bits columns are known, as
// ranks (rank.cuh).
int saerl_topk_finish(const float* scores,  // IN  [rows, width]
                      int64_t rows, int64_t width, int64_t row_stride,
                      const uint32_t* group_maxima,  // IN  [rows, width / 2^group_bits rounded up]
                      int group_bits,                // at least 5
                      int64_t k, int relu,
                      float* values,     // OUT [rows, k]
                      int32_t* columns,  // OUT [rows, k]
                      int device, void* stream);

// How many scores of each row, and of each 32 columns of it, are above theta. A row with a NaN counts -1.
int saerl_threshold_count(const float* scores,  // IN  [rows, width]
                          int64_t rows, int64_t width, int64_t row_stride,
                          const float* bias,     // IN  [width] or null
                          const float* scale,    // IN  [width] or null
                          const float* theta,    // IN  [width], not negative
                          uint8_t* cell_counts,  // OUT [rows, width / 32 rounded up]
                          int64_t* row_counts,   // OUT [rows]
                          int device, void* stream);

// Those scores, row i from entry starts[i] on; entries from `capacity` on are left out.
int saerl_threshold_write(const float* scores,  // IN  [rows, width]
                          int64_t rows, int64_t width, int64_t row_stride,
                          const float* bias,           // IN  [width] or null
                          const float* scale,          // IN  [width] or null
                          const float* theta,          // IN  [width]
                          const uint8_t* cell_counts,  // IN  as counted
                          const int64_t* row_counts,   // IN  as counted
                          const int64_t* starts,       // IN  [rows]
                          int64_t capacity,
                          int32_t* columns,  // OUT [capacity]
                          float* values,     // OUT [capacity]
                          int device, void* stream);

// gathered[i] = x[row_index[i]], bytes copied; ones in every bit (NaN) where the index names no row of x.
int saerl_gather_rows(const void* x,  // IN  [x_rows, width_bytes], rows row_bytes apart
                      int64_t x_rows, int64_t width_bytes, int64_t row_bytes,
                      const int64_t* row_index,  // IN  [rows]
                      int64_t rows,
                      void* gathered,  // OUT [rows, width_bytes]
                      int device, void* stream);

// folded[j] = b_enc[j] - sum_d w[j][d] b_dec[d], summed in float64.
int saerl_fold_bias(const uint16_t* w,  // IN  [latents, width] bfloat16 or float16; strides in elements
                    int64_t latents, int64_t width, int64_t row_stride, int64_t column_stride, int bfloat16,
                    const float* b_enc,  // IN  [latents]
                    const float* b_dec,  // IN  [width]
                    float* folded,       // OUT [latents]
                    int device, void* stream);

// The text of an error code.
const char* saerl_cuda_error(int code);

#ifdef __cplusplus
}
#endif
