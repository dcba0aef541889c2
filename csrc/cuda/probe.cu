// Whether what is compiled here runs on a device: asked before the first launch, so that a driver or a GPU too old
// for it is a reason, and not an error in the middle of a job. All files are compiled for the same targets.
#include "launchers.h"
#include "on_device.h"

namespace {

__global__ void probe_kernel() {}

}  // namespace

extern "C" int saerl_cuda_probe(int device) {
    const saerl::OnDevice there(device);
    cudaFuncAttributes found;
    const cudaError_t error =
        there.error() != cudaSuccess ? there.error() : cudaFuncGetAttributes(&found, probe_kernel);
    // left where it is, it would be taken for one of the next launch
    if (error != cudaSuccess) cudaGetLastError();
    return error;
}
