// Launches go to the device that holds the data, whichever is current.
#pragma once

#include <cuda_runtime.h>

namespace saerl {

class OnDevice {
  public:
    explicit OnDevice(int device) {
        error_ = cudaGetDevice(&before_);
        if (error_ == cudaSuccess) error_ = cudaSetDevice(device);
    }
    ~OnDevice() { cudaSetDevice(before_); }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

    cudaError_t error() const { return error_; }

  private:
    int before_ = 0;
    cudaError_t error_ = cudaSuccess;
};

// More than 48 kB of shared memory per block has to be asked for, what a kernel holds beside it (`__shared__`, a
// kilobyte at most) counted in.
template <typename Kernel>
cudaError_t allow_shared_memory(Kernel kernel, size_t bytes) {
    if (bytes <= 47 * 1024) return cudaSuccess;
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    // left where it is, it would be taken for one of the next launch
    if (error != cudaSuccess) cudaGetLastError();
    return error;
}

}  // namespace saerl
