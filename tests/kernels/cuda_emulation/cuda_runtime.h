// Just enough of CUDA to run a kernel on a CPU: every thread of a block is a fiber that runs until it waits
// for the others. Slow, but the logic of a kernel (indices, barriers, warps) can be tested where there is no
// GPU. It says nothing about races between barriers: fibers run one after another.
#pragma once

#include <ucontext.h>

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
#define __launch_bounds__(threads)

using cudaError_t = int;
using cudaStream_t = void*;
constexpr int cudaSuccess = 0, cudaErrorInvalidValue = 1;
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

inline void run(unsigned blocks, unsigned threads, std::function<void()> kernel) {
    body = std::move(kernel);
    fibers = std::vector<Fiber>(threads);
    warps = std::vector<Meeting>(threads / 32);
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
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

inline int __popc(unsigned bits) {
    return __builtin_popcount(bits);
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
inline unsigned max(unsigned a, unsigned b) {
    return a > b ? a : b;
}
