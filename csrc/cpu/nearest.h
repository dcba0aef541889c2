// The nearest of the centroids seen so far.
#pragma once

#include <cstdint>

namespace saerl {

// The least of distance[k] = bias[k] + factor * dot[k], ties to the lower k; NaN when one of them is.
struct Nearest {
    float distance;
    int32_t label;
    bool nan;

    float result() const { return nan ? __builtin_nanf("") : distance; }
};

// static: files compiled for a newer instruction set include this (row_kernels.h says why)
static inline Nearest none_yet() {
    return {__builtin_inff(), 0, false};
}

}  // namespace saerl
