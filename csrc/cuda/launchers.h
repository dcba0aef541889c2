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

// The text of an error code.
const char* saerl_cuda_error(int code);

#ifdef __cplusplus
}
#endif
