// Int8 screening as Python sees it (kernels/int8_screening.py).
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <string>

#include "bindings.h"
#include "cpu/fingerprint.h"
#include "cpu/instruction_sets.h"
#include "cpu/quantise.h"
#include "cpu/screened_threshold.h"
#include "cpu/screened_topk.h"

namespace saerl {
namespace {

void quantise(Address x, int64_t rows, int64_t width, Address shift, Address factor, int64_t q_stride,
              Address q, Address steps, Address norms, Address errors, int64_t threads,
              const std::string& isa) {
    require(rows >= 0 && width >= 0, "rows and width must not be negative");
    require(q_stride == rotated_width(width), "a row of q must hold the rotated row of x, and nothing else");
    require(threads >= 1, "threads must be at least 1");
    const Channels channels = {at<const double>(shift), at<const double>(factor), width};
    quantise_rows({at<const float>(x), rows, channels}, screen_kernels(isa), threads,
                  {at<int8_t>(q), q_stride, at<float>(steps), at<double>(norms), at<double>(errors)});
}

std::unique_ptr<ScreenedTopK> make_screened_topk(int64_t k, int64_t limit, float trust,
                                                 const std::string& isa) {
    check_select(0, 0, k, 0, 1);
    require(limit >= k, "the limit must not be below k");
    return std::make_unique<ScreenedTopK>(k, limit, trust, screen_kernels(isa));
}

std::unique_ptr<ScreenedThreshold> make_screened_threshold(int64_t limit, float trust,
                                                           const std::string& isa) {
    require(limit >= 0, "the limit must not be negative");
    return std::make_unique<ScreenedThreshold>(limit, trust, screen_kernels(isa));
}

// scale, reach, error, low, high
using ColumnParts = std::array<Address, 5>;
// step, spread, size
using RowParts = std::array<Address, 3>;

void start(Screen& screen, int64_t rows, const ColumnParts& columns, const RowParts& terms) {
    check_select(rows, 0, 1, 0, 1);
    screen.start(rows,
                 {at<const float>(columns[0]), at<const float>(columns[1]), at<const float>(columns[2]),
                  at<const float>(columns[3]), at<const float>(columns[4])},
                 {at<const float>(terms[0]), at<const float>(terms[1]), at<const float>(terms[2])});
}

void absorb_products(Screen& screen, Address products, int64_t width, int64_t threads) {
    check_select(screen.rows(), width, 1, screen.columns_seen(), threads);
    screen.absorb(at<const int32_t>(products), width, threads);
}

// x, its width, shift, float_shift, w, bias, scale
using EncoderParts = std::array<Address, 7>;

Encoder encoder_of(const EncoderParts& parts, int64_t latents, int64_t threads) {
    const int64_t width = static_cast<int64_t>(parts[1]);
    require(width >= 0 && threads >= 1, "width must not be negative, threads at least 1");
    return {at<const float>(parts[0]),
            at<const double>(parts[2]),
            at<const float>(parts[3]),
            at<const float>(parts[4]),
            at<const float>(parts[5]),
            at<const float>(parts[6]),
            width,
            latents};
}

py::tuple as_tuple(const ScreenCounts& counts) {
    return py::make_tuple(counts.whole, counts.sieved, counts.scored, counts.outside, counts.worst);
}

py::tuple finish_topk(ScreenedTopK& screen, const EncoderParts& parts, Address values, Address columns,
                      Address certified, bool relu, int64_t threads) {
    require(screen.columns_seen() >= screen.k(), "k must not be above the number of columns");
    const Encoder encoder = encoder_of(parts, screen.columns_seen(), threads);
    ScreenCounts counts;
    {
        const py::gil_scoped_release released;
        counts = screen.finish(encoder, at<float>(values), at<int32_t>(columns), at<bool>(certified), relu,
                               threads);
    }
    return as_tuple(counts);
}

py::tuple finish_threshold(ScreenedThreshold& screen, const EncoderParts& parts, Address bound,
                           int64_t threads) {
    const Encoder encoder = encoder_of(parts, screen.columns_seen(), threads);
    ScreenCounts counts;
    {
        const py::gil_scoped_release released;
        counts = screen.finish(encoder, at<const double>(bound), threads);
    }
    return as_tuple(counts);
}

uint64_t fingerprint_of(Address bytes, int64_t count, int64_t threads) {
    require(count >= 0 && threads >= 1, "count must not be negative, threads at least 1");
    return fingerprint(at<const void>(bytes), count, threads);
}

}  // namespace

void bind_screens(py::module_& module) {
    module.def("quantise", &quantise, release(), py::arg("x"), py::arg("rows"), py::arg("width"),
               py::arg("shift"), py::arg("factor"), py::arg("q_stride"), py::arg("q"), py::arg("steps"),
               py::arg("norms"), py::arg("errors"), py::arg("threads"), py::arg("isa"));
    module.def("fingerprint", &fingerprint_of, release(), py::arg("bytes"), py::arg("count"),
               py::arg("threads"));
    module.def("int8_product_refused", &int8_product_refused);

    py::class_<Screen>(module, "Screen")
        .def("start", &start, release(), py::arg("rows"), py::arg("columns"), py::arg("terms"))
        .def("absorb", &absorb_products, release(), py::arg("products"), py::arg("width"),
             py::arg("threads"));
    py::class_<ScreenedTopK, Screen>(module, "ScreenedTopK")
        .def(py::init(&make_screened_topk), py::arg("k"), py::arg("limit"), py::arg("trust"), py::arg("isa"))
        .def("finish", &finish_topk, py::arg("encoder"), py::arg("values"), py::arg("columns"),
             py::arg("certified"), py::arg("relu"), py::arg("threads"));
    py::class_<ScreenedThreshold, Screen>(module, "ScreenedThreshold")
        .def(py::init(&make_screened_threshold), py::arg("limit"), py::arg("trust"), py::arg("isa"))
        .def("finish", &finish_threshold, py::arg("encoder"), py::arg("bound"), py::arg("threads"))
        .def("counts", &counts_above<ScreenedThreshold>, py::arg("counts"))
        .def("write", &write_above<ScreenedThreshold>, release(), py::arg("columns"), py::arg("values"),
             py::arg("threads"));
}

}  // namespace saerl
