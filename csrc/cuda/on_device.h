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

// More than 48 kB of shared memory per block has to be asked for.
template <typename Kernel>
cudaError_t allow_shared_memory(Kernel kernel, size_t bytes) {
    if (bytes <= 48 * 1024) return cudaSuccess;
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}

}  // namespace saerl
