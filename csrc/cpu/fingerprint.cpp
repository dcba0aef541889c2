#include "fingerprint.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "threads.h"

namespace saerl {
namespace {

constexpr int64_t kLanes = 32;
constexpr int64_t kWord = sizeof(uint64_t);
constexpr int64_t kStretch = kLanes * kWord;
constexpr int64_t kChunk = 1 << 20;
constexpr uint64_t kOdd = 0x9E3779B97F4A7C15u;

uint64_t stir(uint64_t lane, uint64_t word) {
    lane = (lane ^ word) * kOdd;
    // brings the upper bits, which the product never moves down, to the lower ones
    return lane ^ (lane >> 32);
}

uint64_t of_chunk(const char* bytes, int64_t count) {
    uint64_t lanes[kLanes], words[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) lanes[i] = static_cast<uint64_t>(i) * kOdd;
    int64_t at = 0;
    for (; at + kStretch <= count; at += kStretch) {
        std::memcpy(words, bytes + at, sizeof words);
        for (int64_t i = 0; i < kLanes; ++i) lanes[i] = stir(lanes[i], words[i]);
    }
    if (at < count) {
        std::memset(words, 0, sizeof words);
        std::memcpy(words, bytes + at, static_cast<size_t>(count - at));
        for (int64_t i = 0; i < kLanes; ++i) lanes[i] = stir(lanes[i], words[i]);
    }
    uint64_t whole = static_cast<uint64_t>(count);
    for (const uint64_t lane : lanes) whole = stir(whole, lane);
    return whole;
}

}  // namespace

uint64_t fingerprint(const void* bytes, int64_t count, int64_t threads) {
    const int64_t chunks = (count + kChunk - 1) / kChunk;
    std::vector<uint64_t> each(static_cast<size_t>(chunks));
    for_row_ranges(chunks, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t start = i * kChunk;
            each[i] = of_chunk(static_cast<const char*>(bytes) + start, std::min(kChunk, count - start));
        }
    });
    uint64_t whole = static_cast<uint64_t>(count);
    for (const uint64_t chunk : each) whole = stir(whole, chunk);
    return whole;
}

}  // namespace saerl
