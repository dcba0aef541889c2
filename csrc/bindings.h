// What the files of bindings share: raw addresses, sizes and strides in, nothing of torch.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <limits>

#include "check.h"

namespace saerl {

namespace py = pybind11;

using release = py::call_guard<py::gil_scoped_release>;
using Address = std::uintptr_t;

template <typename T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

inline void check_select(int64_t rows, int64_t width, int64_t k, int64_t first_column, int64_t threads) {
    require(rows >= 0 && width >= 0, "rows and width must not be negative");
    require(k >= 1, "k must be at least 1");
    require(first_column >= 0 && first_column <= std::numeric_limits<int32_t>::max() - width,
            "columns must lie below 2^31");
    require(threads >= 1, "threads must be at least 1");
}

// Of what keeps rows: the number of entries of each, and the entries.
template <typename Keeper>
void counts_above(const Keeper& keeper, Address counts) {
    keeper.kept().counts(at<int64_t>(counts));
}

template <typename Keeper>
void write_above(const Keeper& keeper, Address columns, Address values, int64_t threads) {
    require(threads >= 1, "threads must be at least 1");
    keeper.kept().write(at<int32_t>(columns), at<float>(values), threads);
}

// int8 screening: screen_bindings.cpp.
void bind_screens(py::module_& module);

// The CUDA kernels, where they are built: cuda_bindings.cpp.
void bind_cuda(py::module_& module);
void bind_cuda_rows(py::module_& module);

}  // namespace saerl
