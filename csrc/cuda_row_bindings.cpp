// The CUDA kernels of sparse rows in the compiled module: pooling, and the sums of clusters.
#ifdef SAERL_CUDA
#include "bindings.h"

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/launchers.h"

namespace saerl {
namespace {

void require_queued(int error, const char* kernel) {
    if (error != 0) throw std::runtime_error(std::string(kernel) + ": " + saerl_cuda_error(error));
}

void segment_pool_cuda(Address firsts, Address lasts, int64_t segments, Address begins, Address stops,
                       int64_t tokens, int64_t kept, Address columns, Address values, int64_t entries,
                       int64_t latents, int pooling, Address starts, int64_t places, int64_t shared_bytes,
                       Address counts, Address out_columns, Address out_values, int device, Address stream) {
    require_queued(
        saerl_segment_pool(at<const int64_t>(firsts), at<const int64_t>(lasts), segments,
                           at<const int64_t>(begins), at<const int64_t>(stops), tokens, kept,
                           at<const int32_t>(columns), at<const float>(values), entries, latents, pooling,
                           at<const int64_t>(starts), places, shared_bytes, at<int64_t>(counts),
                           at<int32_t>(out_columns), at<float>(out_values), device, at<void>(stream)),
        "CUDA segment pool");
}

void cluster_sums_cuda(Address indptr, Address columns, Address values, int64_t rows, int64_t entries,
                       int64_t latents, Address begins, Address ends, Address targets, int64_t pieces,
                       Address order, Address first_parts, Address counts, int64_t clusters,
                       int64_t shared_bytes, Address parts, Address sums, int device, Address stream) {
    require_queued(
        saerl_cluster_sums(at<const int64_t>(indptr), at<const int32_t>(columns), at<const float>(values),
                           rows, entries, latents, at<const int64_t>(begins), at<const int64_t>(ends),
                           at<const int64_t>(targets), pieces, at<const int64_t>(order),
                           at<const int64_t>(first_parts), at<const int64_t>(counts), clusters, shared_bytes,
                           at<float>(parts), at<float>(sums), device, at<void>(stream)),
        "CUDA cluster sums");
}

}  // namespace

void bind_cuda_rows(py::module_& module) {
    module.def("segment_pool_cuda", &segment_pool_cuda, release(), py::arg("firsts"), py::arg("lasts"),
               py::arg("segments"), py::arg("begins"), py::arg("stops"), py::arg("tokens"), py::arg("kept"),
               py::arg("columns"), py::arg("values"), py::arg("entries"), py::arg("latents"),
               py::arg("pooling"), py::arg("starts"), py::arg("places"), py::arg("shared_bytes"),
               py::arg("counts"), py::arg("out_columns"), py::arg("out_values"), py::arg("device"),
               py::arg("stream"));
    module.def("cluster_sums_cuda", &cluster_sums_cuda, release(), py::arg("indptr"), py::arg("columns"),
               py::arg("values"), py::arg("rows"), py::arg("entries"), py::arg("latents"), py::arg("begins"),
               py::arg("ends"), py::arg("targets"), py::arg("pieces"), py::arg("order"),
               py::arg("first_parts"), py::arg("counts"), py::arg("clusters"), py::arg("shared_bytes"),
               py::arg("parts"), py::arg("sums"), py::arg("device"), py::arg("stream"));
}

}  // namespace saerl
#endif
