#include "instruction_sets.h"

#include "../check.h"

namespace saerl {

std::vector<const RowKernels*> available_row_kernels() {
    std::vector<const RowKernels*> found;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) found.push_back(&kAvx512Kernels);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&kAvx2Kernels);
#endif
    found.push_back(&kPlainKernels);
    return found;
}

const RowKernels& row_kernels(const std::string& name) {
    static const std::vector<const RowKernels*> available = available_row_kernels();
    std::string names;
    for (const RowKernels* kernels : available) {
        if (name == "auto" || name == kernels->name) return *kernels;
        names += names.empty() ? kernels->name : std::string(", ") + kernels->name;
    }
    require(false, "instruction set must be auto or one of this machine's (" + names + "); got " + name);
    return kPlainKernels;
}

const SparseKernels& sparse_kernels(const std::string& name) {
#if defined(__x86_64__)
    const RowKernels* chosen = &row_kernels(name);
    if (chosen == &kAvx512Kernels) return kAvx512Sparse;
    if (chosen == &kAvx2Kernels) return kAvx2Sparse;
#else
    row_kernels(name);  // refuses unknown names
#endif
    return kPlainSparse;
}

const DenseKernels& dense_kernels(const std::string& name) {
#if defined(__x86_64__)
    const RowKernels* chosen = &row_kernels(name);
    if (chosen == &kAvx512Kernels) return kAvx512Dense;
    if (chosen == &kAvx2Kernels) return kAvx2Dense;
#else
    row_kernels(name);  // refuses unknown names
#endif
    return kPlainDense;
}

const DecodeKernels& decode_kernels(const std::string& name) {
#if defined(__x86_64__)
    const RowKernels* chosen = &row_kernels(name);
    if (chosen == &kAvx512Kernels) return kAvx512Decode;
    if (chosen == &kAvx2Kernels) return kAvx2Decode;
#else
    row_kernels(name);  // refuses unknown names
#endif
    return kPlainDecode;
}

const ScreenKernels& screen_kernels(const std::string& name) {
#if defined(__x86_64__)
    if (&row_kernels(name) == &kAvx512Kernels) return kAvx512Screen;
#else
    row_kernels(name);  // refuses unknown names
#endif
    return kPlainScreen;
}

std::string int8_product_refused() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512vnni")) return "";
#endif
    return "the processor has no AVX-512 VNNI, without which the int8 product is not exact or not fast";
}

}  // namespace saerl
