// A loop over rows on several threads.
#pragma once

#include <cstdint>
#include <functional>

namespace saerl {

// Calls body(begin, end) on disjoint ranges that cover [0, rows), one range per thread. What a row gives must
// not depend on the range it falls into: then the number of threads changes no bits.
void for_row_ranges(int64_t rows, int64_t threads, const std::function<void(int64_t, int64_t)>& body);

// True in a forked child. The child has no worker threads, and waiting for them would never end, so every
// loop there runs serially.
bool forked();

}  // namespace saerl
