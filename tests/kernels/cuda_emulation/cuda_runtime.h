// Just enough of CUDA to run a kernel on a CPU: every thread of a block is a fiber that runs until it waits
// for the others. Slow, but the logic of a kernel (indices, barriers, warps) can be tested where there is no
// GPU. It says nothing about races between barriers: fibers run one after another.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)
#define __align__(bytes)

using cudaError_t = int;
using cudaStream_t = void*;
constexpr int cudaSuccess = 0, cudaErrorInvalidValue = 1;
constexpr int cudaFuncAttributeMaxDynamicSharedMemorySize = 8;
static size_t allowed_shared_bytes = 0;  // of the kernel that is launched next
template <typename Kernel>
int cudaFuncSetAttribute(Kernel, int, int bytes) {
    allowed_shared_bytes = bytes;
    return bytes <= 227 * 1024 ? cudaSuccess : cudaErrorInvalidValue;
}
inline int cudaGetDevice(int* device) {
    return *device = 0;
}
inline int cudaSetDevice(int) {
    return cudaSuccess;
}
inline int cudaGetLastError() {
    return cudaSuccess;
}
inline const char* cudaGetErrorString(int code) {
    return code == 0 ? "no error" : "invalid argument";
}

struct Index {
    unsigned x;
};
static Index threadIdx, blockIdx;
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

namespace emulation {

constexpr size_t kStack = 1 << 16;

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[kStack]};
    bool done = false;
};

// Threads that wait for each other and leave with a value made of all of theirs.
struct Meeting {
    unsigned size = 0, arrived = 0, number = 0;
    std::vector<uint64_t> brought[2];
};

static ucontext_t scheduler;
static std::vector<Fiber> fibers;
static Meeting block;
static std::vector<Meeting> warps;
static uint64_t arrivals;
static std::function<void()> body;

inline const std::vector<uint64_t>& meet(Meeting& meeting, unsigned place, uint64_t value) {
    const unsigned number = meeting.number;
    std::vector<uint64_t>& brought = meeting.brought[number % 2];
    brought[place] = value;
    ++arrivals;
    if (++meeting.arrived == meeting.size) {
        meeting.arrived = 0;
        ++meeting.number;
    } else {
        while (meeting.number == number) swapcontext(&fibers[threadIdx.x].context, &scheduler);
    }
    return brought;
}

inline void run_fiber() {
    body();
    fibers[threadIdx.x].done = true;
    ++arrivals;
    swapcontext(&fibers[threadIdx.x].context, &scheduler);
}

inline void start(Meeting& meeting, unsigned size) {
    meeting.size = size;
    meeting.arrived = meeting.number = 0;
    for (auto& brought : meeting.brought) brought.assign(size, 0);
}

// What `extern __shared__` names; as large as a launch asks for, and full of garbage at the start of each block.
static std::vector<double> shared_memory;

extern "C" size_t emulated_shared_bytes() {
    return shared_memory.size() * sizeof(double);
}

inline void run(unsigned blocks, unsigned threads, size_t shared_bytes, std::function<void()> kernel) {
    // 48 kB without asking; a kernel's own `__shared__`, which is not known here, is to fit beside it
    if (shared_bytes > 47 * 1024 && shared_bytes > allowed_shared_bytes) {
        std::fprintf(stderr, "%zu bytes of shared memory were not asked for\n", shared_bytes);
        std::abort();
    }
    allowed_shared_bytes = 0;
    body = std::move(kernel);
    shared_memory.resize(shared_bytes / sizeof(double) + 1);
    fibers = std::vector<Fiber>(threads);
    warps = std::vector<Meeting>(threads / 32);
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
        std::memset(shared_memory.data(), 0xA5, shared_memory.size() * sizeof(double));
        start(block, threads);
        for (Meeting& warp : warps) start(warp, 32);
        for (Fiber& fiber : fibers) {
            fiber.done = false;
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.get();
            fiber.context.uc_stack.ss_size = kStack;
            makecontext(&fiber.context, run_fiber, 0);
        }
        for (bool running = true; running;) {
            const uint64_t before = arrivals;
            running = false;
            for (unsigned t = 0; t < threads; ++t) {
                if (fibers[t].done) continue;
                threadIdx.x = t;
                swapcontext(&scheduler, &fibers[t].context);
                running |= !fibers[t].done;
            }
            if (running && arrivals == before) {
                std::fprintf(stderr, "deadlock: some threads wait for others that never come\n");
                std::abort();
            }
        }
    }
}

inline uint64_t count(const std::vector<uint64_t>& values) {
    uint64_t total = 0;
    for (uint64_t value : values) total += value != 0;
    return total;
}

}  // namespace emulation

inline void __syncthreads() {
    emulation::meet(emulation::block, threadIdx.x, 0);
}
inline int __syncthreads_count(int predicate) {
    return static_cast<int>(emulation::count(emulation::meet(emulation::block, threadIdx.x, predicate != 0)));
}
inline int __syncthreads_or(int predicate) {
    return __syncthreads_count(predicate) != 0;
}

inline const std::vector<uint64_t>& meet_warp(uint64_t value) {
    return emulation::meet(emulation::warps[threadIdx.x / 32], threadIdx.x % 32, value);
}
inline unsigned __ballot_sync(unsigned, int predicate) {
    unsigned lanes = 0;
    const auto& values = meet_warp(predicate != 0);
    for (unsigned lane = 0; lane < 32; ++lane) lanes |= static_cast<unsigned>(values[lane]) << lane;
    return lanes;
}
inline unsigned __reduce_max_sync(unsigned, unsigned value) {
    uint64_t largest = 0;
    for (uint64_t other : meet_warp(value)) largest = other > largest ? other : largest;
    return static_cast<unsigned>(largest);
}
inline int __reduce_add_sync(unsigned, int value) {
    uint64_t sum = 0;
    for (uint64_t other : meet_warp(static_cast<uint64_t>(value))) sum += other;
    return static_cast<int>(sum);
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int lanes) {
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    const uint64_t other = meet_warp(bits)[threadIdx.x % 32 ^ lanes];
    std::memcpy(&value, &other, sizeof value);
    return value;
}
inline void __syncwarp() {
    meet_warp(0);
}
template <typename T>
T atomicMax(T* place, T value) {
    const T before = *place;
    *place = std::max(before, value);
    return before;
}
inline int atomicAdd(int* place, int value) {
    return (*place += value) - value;
}
inline int atomicOr(int* place, int value) {
    const int before = *place;
    *place |= value;
    return before;
}

inline int __popc(unsigned bits) {
    return __builtin_popcount(bits);
}
inline int __ffs(unsigned bits) {
    return __builtin_ffs(static_cast<int>(bits));
}
inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
using std::isnan;
using std::max;
using std::memset;
using std::min;
