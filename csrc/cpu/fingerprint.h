// A number that changes when bytes change, to see that weights are still those something was prepared from.
//
// Floor:  reading the bytes once.
// Trick:  32 independent lanes, each step a bijection of the lane: a change of one word always shows, and several
//         cancel with the odds of chance. Chunks have a fixed size, so threads change nothing. Not for adversaries.
#pragma once

#include <cstdint>

namespace saerl {

uint64_t fingerprint(const void* bytes, int64_t count, int64_t threads);

}  // namespace saerl
