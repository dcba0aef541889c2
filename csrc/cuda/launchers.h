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

#define SAERL_POOL_SUM 0
#define SAERL_POOL_MEAN 1
#define SAERL_POOL_MAX 2
#define SAERL_POOL_COUNT 3

// The tokens of each segment pooled, as sparse rows with room between them: row s has counts[s] entries from
// starts[s] on, columns ascending and zeros left out. counts[s] is -1 where the segment holds a column that is none
// of 0..latents-1, or where its offsets cannot be.
int saerl_segment_pool(const int64_t* firsts,  // IN  [segments] its tokens are firsts[s] .. lasts[s]
                       const int64_t* lasts, int64_t segments,
                       const int64_t* begins,  // IN  [tokens] entries of a token; null: `kept` entries each
                       const int64_t* stops, int64_t tokens, int64_t kept,
                       const int32_t* columns,  // IN  [entries], distinct within a token
                       const float* values,     // IN  [entries]
                       int64_t entries, int64_t latents, int pooling,
                       const int64_t* starts,  // IN  [segments + 1]
                       int64_t places,         // of the result
                       int64_t shared_bytes,   // what a block may take
                       int64_t* counts,        // OUT [segments]
                       int32_t* out_columns,   // OUT [places]
                       float* out_values,      // OUT [places]
                       int device, void* stream);

// The sum of the sparse rows of each cluster. The rows come in `order`, by cluster, cut into pieces: begins, ends,
// targets [pieces] and first_parts, counts [clusters], as in saerl_fast/kernels/pieces.py.
int saerl_cluster_sums(const int64_t* indptr,   // IN  [rows + 1]
                       const int32_t* columns,  // IN  [entries], distinct within a row
                       const float* values,     // IN  [entries]
                       int64_t rows, int64_t entries, int64_t latents, const int64_t* begins,
                       const int64_t* ends, const int64_t* targets, int64_t pieces,
                       const int64_t* order,  // IN  [rows]
                       const int64_t* first_parts, const int64_t* counts, int64_t clusters,
                       int64_t shared_bytes,  // what a block may take
                       float* parts,          //     [parts, latents] room
                       float* sums,           // OUT [clusters, latents]
                       int device, void* stream);

// 0 where the kernels can run on a device; launches nothing.
int saerl_cuda_probe(int device);

// The text of an error code.
const char* saerl_cuda_error(int code);

#ifdef __cplusplus
}
#endif
