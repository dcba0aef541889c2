// The CUDA kernels in the compiled module: addresses on a device, the device, and the stream to queue on. Nothing
// here waits.
#ifdef SAERL_CUDA
#include "bindings.h"

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#include "cuda/launchers.h"

namespace saerl {
namespace {

void check_sizes(int64_t rows, int64_t width) {
    require(rows >= 0 && width >= 0, "rows and width must not be negative");
    require(width <= std::numeric_limits<int32_t>::max(), "columns must lie below 2^31");
}

void require_queued(int error, const char* kernel) {
    if (error != 0) throw std::runtime_error(std::string(kernel) + ": " + saerl_cuda_error(error));
}

void topk_select_cuda(Address scores, int64_t rows, int64_t width, int64_t row_stride, Address bias,
                      Address scale, int64_t k, bool relu, Address values, Address columns, int device,
                      Address stream) {
    check_sizes(rows, width);
    require(k >= 1 && k <= SAERL_TOPK_SELECT_MAX_K, "k is outside of the limits of the CUDA select");
    require(rows == 0 || k <= width, "k must not be above the number of columns");
    require_queued(saerl_topk_select(at<const float>(scores), rows, width, row_stride, at<const float>(bias),
                                     at<const float>(scale), k, relu, at<float>(values), at<int32_t>(columns),
                                     device, at<void>(stream)),
                   "CUDA top-k select");
}

void topk_finish_cuda(Address scores, int64_t rows, int64_t width, int64_t row_stride, Address group_maxima,
                      int group_bits, int64_t k, bool relu, Address values, Address columns, int device,
                      Address stream) {
    check_sizes(rows, width);
    require_queued(saerl_topk_finish(at<const float>(scores), rows, width, row_stride,
                                     at<const uint32_t>(group_maxima), group_bits, k, relu, at<float>(values),
                                     at<int32_t>(columns), device, at<void>(stream)),
                   "CUDA top-k select from maxima");
}

void threshold_count_cuda(Address scores, int64_t rows, int64_t width, int64_t row_stride, Address bias,
                          Address scale, Address theta, Address cell_counts, Address row_counts, int device,
                          Address stream) {
    require_queued(
        saerl_threshold_count(at<const float>(scores), rows, width, row_stride, at<const float>(bias),
                              at<const float>(scale), at<const float>(theta), at<uint8_t>(cell_counts),
                              at<int64_t>(row_counts), device, at<void>(stream)),
        "CUDA threshold count");
}

void threshold_write_cuda(Address scores, int64_t rows, int64_t width, int64_t row_stride, Address bias,
                          Address scale, Address theta, Address cell_counts, Address row_counts,
                          Address starts, int64_t capacity, Address columns, Address values, int device,
                          Address stream) {
    require_queued(
        saerl_threshold_write(at<const float>(scores), rows, width, row_stride, at<const float>(bias),
                              at<const float>(scale), at<const float>(theta), at<const uint8_t>(cell_counts),
                              at<const int64_t>(row_counts), at<const int64_t>(starts), capacity,
                              at<int32_t>(columns), at<float>(values), device, at<void>(stream)),
        "CUDA threshold write");
}

void gather_rows_cuda(Address x, int64_t x_rows, int64_t width_bytes, int64_t row_bytes, Address row_index,
                      int64_t rows, Address gathered, int device, Address stream) {
    require_queued(
        saerl_gather_rows(at<const void>(x), x_rows, width_bytes, row_bytes, at<const int64_t>(row_index),
                          rows, at<void>(gathered), device, at<void>(stream)),
        "CUDA gather of rows");
}

std::string cuda_probe(int device) {
    const int error = saerl_cuda_probe(device);
    return error == 0 ? "" : saerl_cuda_error(error);
}

}  // namespace

void bind_cuda(py::module_& module) {
    module.def("topk_select_cuda", &topk_select_cuda, release(), py::arg("scores"), py::arg("rows"),
               py::arg("width"), py::arg("row_stride"), py::arg("bias"), py::arg("scale"), py::arg("k"),
               py::arg("relu"), py::arg("values"), py::arg("columns"), py::arg("device"), py::arg("stream"));
    module.def("topk_finish_cuda", &topk_finish_cuda, release(), py::arg("scores"), py::arg("rows"),
               py::arg("width"), py::arg("row_stride"), py::arg("group_maxima"), py::arg("group_bits"),
               py::arg("k"), py::arg("relu"), py::arg("values"), py::arg("columns"), py::arg("device"),
               py::arg("stream"));
    module.def("threshold_count_cuda", &threshold_count_cuda, release(), py::arg("scores"), py::arg("rows"),
               py::arg("width"), py::arg("row_stride"), py::arg("bias"), py::arg("scale"), py::arg("theta"),
               py::arg("cell_counts"), py::arg("row_counts"), py::arg("device"), py::arg("stream"));
    module.def("threshold_write_cuda", &threshold_write_cuda, release(), py::arg("scores"), py::arg("rows"),
               py::arg("width"), py::arg("row_stride"), py::arg("bias"), py::arg("scale"), py::arg("theta"),
               py::arg("cell_counts"), py::arg("row_counts"), py::arg("starts"), py::arg("capacity"),
               py::arg("columns"), py::arg("values"), py::arg("device"), py::arg("stream"));
    module.def("gather_rows_cuda", &gather_rows_cuda, release(), py::arg("x"), py::arg("x_rows"),
               py::arg("width_bytes"), py::arg("row_bytes"), py::arg("row_index"), py::arg("rows"),
               py::arg("gathered"), py::arg("device"), py::arg("stream"));
    module.def("cuda_probe", &cuda_probe, release(), py::arg("device"),
               "Why the CUDA kernels cannot run on a device; empty where they can.");
    bind_cuda_rows(module);
    module.attr("cuda") = true;
    module.attr("cuda_max_k") = SAERL_TOPK_SELECT_MAX_K;
    module.attr("cuda_max_groups") = SAERL_TOPK_SELECT_MAX_GROUPS;
}

}  // namespace saerl
#endif
