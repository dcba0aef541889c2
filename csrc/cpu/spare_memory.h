// Memory that was freed and is kept for the next array of its size.
//
// The system clears fresh memory page by page, which takes a quarter of the time of pooling. Batch after batch the
// results have about one size, and the earlier ones are gone when the next is made: their memory needs no clearing.
#pragma once

#include <cstddef>

namespace saerl {

struct Memory {
    void* data;
    size_t bytes;
};

// Memory of at least `bytes`, not set to anything: kept, or fresh. Throws std::bad_alloc.
Memory take_memory(size_t bytes);

// Keeps it, or frees it: kept are two blocks of kLeastKept to kMostKept bytes at most, the larger ones.
void give_memory(Memory memory);

constexpr size_t kLeastKept = size_t{1} << 20;
constexpr size_t kMostKept = size_t{1} << 26;

}  // namespace saerl
