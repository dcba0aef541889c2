// The compiled module `saerl_fast._native`: raw addresses, sizes and strides in, nothing of torch. The Python
// side (saerl_fast/kernels) makes the tensors and keeps them alive during the call.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "bindings.h"
#include "cpu/centroids.h"
#include "cpu/cluster_sums.h"
#include "cpu/decode.h"
#include "cpu/dense_product.h"
#include "cpu/far_rows.h"
#include "cpu/instruction_sets.h"
#include "cpu/row_sample.h"
#include "cpu/segment_pool.h"
#include "cpu/sparse_product.h"
#include "cpu/survey.h"
#include "cpu/threads.h"
#include "cpu/threshold_select.h"
#include "cpu/topk_select.h"

namespace py = pybind11;

namespace saerl {
namespace {

void topk_select_cpu(Address scores, int64_t rows, int64_t width, int64_t row_stride, int64_t column_stride,
                     Address bias, Address scale, int64_t k, bool relu, Address values, Address columns,
                     int64_t threads, const std::string& isa) {
    check_select(rows, width, k, 0, threads);
    require(rows == 0 || k <= width, "k must not be above the number of columns");
    const ScoreBlock block = {
        at<const float>(scores), rows, width, row_stride, column_stride, at<const float>(bias),
        at<const float>(scale),  0};
    topk_select(block, k, relu, row_kernels(isa), threads, at<float>(values), at<int32_t>(columns));
}

void absorb(RunningTopK& running, Address scores, int64_t width, int64_t row_stride, Address bias,
            Address scale, int64_t threads) {
    const int64_t first_column = running.columns_seen();
    check_select(running.rows(), width, running.k(), first_column, threads);
    running.absorb({at<const float>(scores), running.rows(), width, row_stride, 1, at<const float>(bias),
                    at<const float>(scale), first_column},
                   threads);
}

void finish(RunningTopK& running, Address values, Address columns, bool relu, int64_t threads) {
    require(running.columns_seen() >= running.k(), "k must not be above the number of columns");
    require(threads >= 1, "threads must be at least 1");
    running.finish(at<float>(values), at<int32_t>(columns), relu, threads);
}

std::unique_ptr<RunningTopK> make_running(int64_t rows, int64_t k, const std::string& isa) {
    check_select(rows, 0, k, 0, 1);
    return std::make_unique<RunningTopK>(rows, k, row_kernels(isa));
}

std::unique_ptr<RunningThreshold> make_running_threshold(int64_t rows, const std::string& isa) {
    check_select(rows, 0, 1, 0, 1);
    return std::make_unique<RunningThreshold>(rows, row_kernels(isa));
}

void absorb_above(RunningThreshold& running, Address scores, int64_t width, int64_t row_stride, Address bias,
                  Address scale, Address theta, int64_t threads) {
    const int64_t first_column = running.columns_seen();
    check_select(running.rows(), width, 1, first_column, threads);
    running.absorb({at<const float>(scores), running.rows(), width, row_stride, 1, at<const float>(bias),
                    at<const float>(scale), first_column},
                   at<const float>(theta), threads);
}

Pooling pooling_named(const std::string& name) {
    if (name == "sum") return Pooling::sum;
    if (name == "mean") return Pooling::mean;
    if (name == "max") return Pooling::max;
    require(name == "count", "pooling must be sum, mean, max or count; got " + name);
    return Pooling::count;
}

std::pair<Array<int32_t>, Array<float>> pool_rows(Address starts, Address stops, Address tokens,
                                                  int64_t segments, Address columns, Address values,
                                                  int64_t entries, int64_t latents,
                                                  const std::string& pooling, Address indptr, int64_t threads,
                                                  const std::string& isa) {
    require(segments >= 0 && entries >= 0, "segments and entries must not be negative");
    require(latents >= 1 && latents <= std::numeric_limits<int32_t>::max(),
            "latents must be from 1 to 2^31 - 1");
    require(threads >= 1, "threads must be at least 1");
    const Segments all = {at<const int64_t>(starts),
                          at<const int64_t>(stops),
                          at<const int64_t>(tokens),
                          at<const int32_t>(columns),
                          at<const float>(values),
                          segments,
                          entries,
                          latents};
    Pooled pooled = pool_segments(all, pooling_named(pooling), sparse_kernels(isa), threads);
    int64_t* ends = at<int64_t>(indptr);
    ends[0] = 0;
    for (int64_t s = 0; s < segments; ++s) ends[s + 1] = ends[s] + pooled.counts[s];
    return {std::move(pooled.columns), std::move(pooled.values)};
}

SparseRows sparse_rows(Address indptr, Address columns, Address values, int64_t rows, int64_t latents,
                       int64_t threads) {
    require(rows >= 0, "rows must not be negative");
    require(latents >= 0 && latents <= std::numeric_limits<int32_t>::max(), "latents must lie below 2^31");
    require(threads >= 1, "threads must be at least 1");
    return {at<const int64_t>(indptr), at<const int32_t>(columns), at<const float>(values), rows, latents};
}

void decode_rows(Address indptr, Address columns, Address values, int64_t rows, int64_t latents,
                 Address table, Address b, int64_t width, Address out, int64_t threads,
                 const std::string& isa) {
    require(width >= 0, "width must not be negative");
    decode(sparse_rows(indptr, columns, values, rows, latents, threads), at<const float>(table),
           at<const float>(b), width, decode_kernels(isa), threads, at<float>(out));
}

void decode_gradient(Address indptr, Address columns, int64_t rows, int64_t latents, Address x, Address table,
                     int64_t width, Address dots, int64_t threads, const std::string& isa) {
    require(width >= 0, "width must not be negative");
    decode_dots(sparse_rows(indptr, columns, 0, rows, latents, threads), at<const float>(x),
                at<const float>(table), width, decode_kernels(isa), threads, at<float>(dots));
}

Panels panels_of(Address numbers, int64_t width, int64_t columns) {
    require(width >= SparseKernels::kPanelStep && width <= SparseKernels::kPanel &&
                width % SparseKernels::kPanelStep == 0,
            "panels must be 16, 32, 48 or 64 wide");
    require(columns >= 0, "columns must not be negative");
    return {at<const float>(numbers), width, columns};
}

void multiply_sparse(Address indptr, Address columns, Address values, int64_t rows, int64_t latents,
                     Address panels, int64_t width, int64_t table_columns, Address out, int64_t threads,
                     const std::string& isa) {
    sparse_product(sparse_rows(indptr, columns, values, rows, latents, threads),
                   panels_of(panels, width, table_columns), sparse_kernels(isa), threads, at<float>(out));
}

void multiply_to_unit(Address indptr, Address columns, Address values, int64_t rows, int64_t latents,
                      Address panels, int64_t width, int64_t table_columns, Address weights, bool root,
                      Address out, int64_t threads, const std::string& isa) {
    unit_product(sparse_rows(indptr, columns, values, rows, latents, threads),
                 panels_of(panels, width, table_columns), at<const float>(weights), root, sparse_kernels(isa),
                 threads, at<float>(out));
}

std::tuple<bool, bool, bool> survey_rows(Address indptr, Address columns, Address values, int64_t rows,
                                         int64_t latents, Address having, int64_t threads,
                                         const std::string& isa) {
    const Survey found = survey(sparse_rows(indptr, columns, values, rows, latents, threads),
                                sparse_kernels(isa), threads, at<int64_t>(having));
    return {found.ascending, found.finite, found.zeros};
}

void sample_rows(Address indptr, Address columns, Address values, int64_t rows, int64_t latents,
                 Address chosen, int64_t count, Address weights, bool root, Address starts,
                 Address sampled_columns, Address sampled_values, int64_t threads, const std::string& isa) {
    require(count >= 0, "count must not be negative");
    unit_sample(sparse_rows(indptr, columns, values, rows, latents, threads), at<const int64_t>(chosen),
                count, at<const float>(weights), root, sparse_kernels(isa), threads,
                at<const int64_t>(starts), at<int32_t>(sampled_columns), at<float>(sampled_values));
}

void transpose_rows(Address indptr, Address columns, Address values, int64_t rows, int64_t latents,
                    Address starts, Address places, Address transposed) {
    require(rows <= std::numeric_limits<int32_t>::max(), "rows must lie below 2^31");
    transpose(sparse_rows(indptr, columns, values, rows, latents, 1), at<int64_t>(starts),
              at<int32_t>(places), at<float>(transposed));
}

Centroids centroids_of(Address centroids, int64_t clusters, int64_t latents, bool cosine) {
    require(clusters >= 0, "clusters must not be negative");
    return Centroids(at<const float>(centroids), clusters, latents,
                     cosine ? Metric::cosine : Metric::euclidean);
}

void nearest_sparse(Address indptr, Address columns, Address values, int64_t rows, int64_t latents,
                    Address centroids, int64_t clusters, bool cosine, Address labels, Address scores,
                    int64_t threads, const std::string& isa) {
    nearest_centroid(sparse_rows(indptr, columns, values, rows, latents, threads),
                     centroids_of(centroids, clusters, latents, cosine), sparse_kernels(isa), threads,
                     at<int32_t>(labels), at<float>(scores));
}

void nearest_dense(Address values, int64_t rows, int64_t latents, int64_t stride, Address centroids,
                   int64_t clusters, bool cosine, Address labels, Address scores, int64_t threads,
                   const std::string& isa) {
    require(rows >= 0 && threads >= 1, "rows must not be negative, threads at least 1");
    require(latents >= 0 && latents <= std::numeric_limits<int32_t>::max(), "latents must lie below 2^31");
    const DenseRows dense = {at<const float>(values), rows, latents, stride};
    nearest_centroid(dense, centroids_of(centroids, clusters, latents, cosine), dense_kernels(isa), threads,
                     at<int32_t>(labels), at<float>(scores));
}

int64_t far_rows_of(Address rows, Address may_seed, int64_t count, int64_t latents, Address draws,
                    int64_t clusters, int64_t trials, Address chosen, int64_t threads,
                    const std::string& isa) {
    require(count >= 1 && latents >= 0 && clusters >= 0 && trials >= 1 && threads >= 1,
            "sizes must be positive");
    return far_rows(at<const float>(rows), at<const uint8_t>(may_seed), count, latents,
                    at<const double>(draws), clusters, trials, dense_kernels(isa), threads,
                    at<int64_t>(chosen));
}

void sum_sparse(Address indptr, Address columns, Address values, int64_t rows, int64_t latents,
                Address labels, int64_t clusters, Address sums, Address counts, int64_t threads) {
    require(clusters >= 1, "clusters must be at least 1");
    cluster_sums_sparse(sparse_rows(indptr, columns, values, rows, latents, threads),
                        at<const int32_t>(labels), clusters, threads, at<float>(sums), at<int64_t>(counts));
}

void sum_dense(Address rows, int64_t count, int64_t width, int64_t stride, Address labels, int64_t clusters,
               Address sums, Address counts, int64_t threads, const std::string& isa) {
    require(count >= 0 && width >= 0 && clusters >= 1 && threads >= 1, "sizes must be positive");
    cluster_sums_dense(at<const float>(rows), count, width, stride, at<const int32_t>(labels), clusters,
                       dense_kernels(isa), threads, at<float>(sums), at<int64_t>(counts));
}

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const RowKernels* kernels : available_row_kernels()) names.emplace_back(kernels->name);
    return names;
}

// Python reads the numbers where they are, and keeps the array as long as it does.
template <typename T>
void array_class(py::module_& module, const char* name) {
    py::class_<Array<T>>(module, name, py::buffer_protocol())
        .def("__len__", &Array<T>::size)
        .def_buffer([](Array<T>& array) { return py::buffer_info(array.data(), array.size()); });
}

}  // namespace
}  // namespace saerl

PYBIND11_MODULE(_native, module) {
    using saerl::release;
    module.doc() = "Compiled kernels of saerl_fast. Use saerl_fast.kernels, which knows about tensors.";

    module.def("topk_select", &saerl::topk_select_cpu, release(), py::arg("scores"), py::arg("rows"),
               py::arg("width"), py::arg("row_stride"), py::arg("column_stride"), py::arg("bias"),
               py::arg("scale"), py::arg("k"), py::arg("relu"), py::arg("values"), py::arg("columns"),
               py::arg("threads"), py::arg("isa"));

    py::class_<saerl::RunningTopK>(module, "RunningTopK")
        .def(py::init(&saerl::make_running), py::arg("rows"), py::arg("k"), py::arg("isa"))
        .def("absorb", &saerl::absorb, release(), py::arg("scores"), py::arg("width"), py::arg("row_stride"),
             py::arg("bias"), py::arg("scale"), py::arg("threads"))
        .def("finish", &saerl::finish, release(), py::arg("values"), py::arg("columns"), py::arg("relu"),
             py::arg("threads"));

    py::class_<saerl::RunningThreshold>(module, "RunningThreshold")
        .def(py::init(&saerl::make_running_threshold), py::arg("rows"), py::arg("isa"))
        .def("absorb", &saerl::absorb_above, release(), py::arg("scores"), py::arg("width"),
             py::arg("row_stride"), py::arg("bias"), py::arg("scale"), py::arg("theta"), py::arg("threads"))
        .def("counts", &saerl::counts_above<saerl::RunningThreshold>, py::arg("counts"))
        .def("write", &saerl::write_above<saerl::RunningThreshold>, release(), py::arg("columns"),
             py::arg("values"), py::arg("threads"));

    saerl::bind_screens(module);

    saerl::array_class<int32_t>(module, "Int32Array");
    saerl::array_class<float>(module, "FloatArray");
    module.def("segment_pool", &saerl::pool_rows, release(), py::arg("starts"), py::arg("stops"),
               py::arg("tokens"), py::arg("segments"), py::arg("columns"), py::arg("values"),
               py::arg("entries"), py::arg("latents"), py::arg("pooling"), py::arg("indptr"),
               py::arg("threads"), py::arg("isa"));

    module.def("decode_rows", &saerl::decode_rows, release(), py::arg("indptr"), py::arg("columns"),
               py::arg("values"), py::arg("rows"), py::arg("latents"), py::arg("table"), py::arg("b"),
               py::arg("width"), py::arg("out"), py::arg("threads"), py::arg("isa"));
    module.def("decode_gradient", &saerl::decode_gradient, release(), py::arg("indptr"), py::arg("columns"),
               py::arg("rows"), py::arg("latents"), py::arg("x"), py::arg("table"), py::arg("width"),
               py::arg("dots"), py::arg("threads"), py::arg("isa"));
    module.def("multiply_sparse", &saerl::multiply_sparse, release(), py::arg("indptr"), py::arg("columns"),
               py::arg("values"), py::arg("rows"), py::arg("latents"), py::arg("panels"), py::arg("width"),
               py::arg("table_columns"), py::arg("out"), py::arg("threads"), py::arg("isa"));
    module.def("multiply_to_unit", &saerl::multiply_to_unit, release(), py::arg("indptr"), py::arg("columns"),
               py::arg("values"), py::arg("rows"), py::arg("latents"), py::arg("panels"), py::arg("width"),
               py::arg("table_columns"), py::arg("weights"), py::arg("root"), py::arg("out"),
               py::arg("threads"), py::arg("isa"));
    module.def("survey_rows", &saerl::survey_rows, release(), py::arg("indptr"), py::arg("columns"),
               py::arg("values"), py::arg("rows"), py::arg("latents"), py::arg("having"), py::arg("threads"),
               py::arg("isa"));
    module.def("sample_rows", &saerl::sample_rows, release(), py::arg("indptr"), py::arg("columns"),
               py::arg("values"), py::arg("rows"), py::arg("latents"), py::arg("chosen"), py::arg("count"),
               py::arg("weights"), py::arg("root"), py::arg("starts"), py::arg("sampled_columns"),
               py::arg("sampled_values"), py::arg("threads"), py::arg("isa"));
    module.def("transpose_rows", &saerl::transpose_rows, release(), py::arg("indptr"), py::arg("columns"),
               py::arg("values"), py::arg("rows"), py::arg("latents"), py::arg("starts"), py::arg("places"),
               py::arg("transposed"));
    module.def("nearest_sparse", &saerl::nearest_sparse, release(), py::arg("indptr"), py::arg("columns"),
               py::arg("values"), py::arg("rows"), py::arg("latents"), py::arg("centroids"),
               py::arg("clusters"), py::arg("cosine"), py::arg("labels"), py::arg("scores"),
               py::arg("threads"), py::arg("isa"));
    module.def("nearest_dense", &saerl::nearest_dense, release(), py::arg("values"), py::arg("rows"),
               py::arg("latents"), py::arg("stride"), py::arg("centroids"), py::arg("clusters"),
               py::arg("cosine"), py::arg("labels"), py::arg("scores"), py::arg("threads"), py::arg("isa"));
    module.def("far_rows", &saerl::far_rows_of, release(), py::arg("rows"), py::arg("may_seed"),
               py::arg("count"), py::arg("latents"), py::arg("draws"), py::arg("clusters"), py::arg("trials"),
               py::arg("chosen"), py::arg("threads"), py::arg("isa"));
    module.def("sum_sparse", &saerl::sum_sparse, release(), py::arg("indptr"), py::arg("columns"),
               py::arg("values"), py::arg("rows"), py::arg("latents"), py::arg("labels"), py::arg("clusters"),
               py::arg("sums"), py::arg("counts"), py::arg("threads"));
    module.def("sum_dense", &saerl::sum_dense, release(), py::arg("rows"), py::arg("count"), py::arg("width"),
               py::arg("stride"), py::arg("labels"), py::arg("clusters"), py::arg("sums"), py::arg("counts"),
               py::arg("threads"), py::arg("isa"));

    module.def("instruction_sets", &saerl::instruction_sets, "Those this machine has, best first.");
    module.def("forked", &saerl::forked, "True in a forked child, where every loop runs on one thread.");

#ifdef _OPENMP
    module.attr("openmp") = true;
#else
    module.attr("openmp") = false;
#endif
#ifdef SAERL_CUDA
    saerl::bind_cuda(module);
#else
    module.attr("cuda") = false;
#endif
}
