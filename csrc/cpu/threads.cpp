#include "threads.h"

#include <unistd.h>

#include <algorithm>
#include <exception>

namespace saerl {

static const pid_t kLoadedBy = getpid();

bool forked() {
    return getpid() != kLoadedBy;
}

void for_row_ranges(int64_t rows, int64_t threads, const std::function<void(int64_t, int64_t)>& body) {
    const int64_t ranges = std::clamp<int64_t>(threads, 1, std::max<int64_t>(rows, 1));
    if (ranges == 1 || forked()) return body(0, rows);
    std::exception_ptr failure = nullptr;
#pragma omp parallel for num_threads(static_cast<int>(ranges)) schedule(static, 1)
    for (int64_t range = 0; range < ranges; ++range) {
        try {
            body(rows * range / ranges, rows * (range + 1) / ranges);
        } catch (...) {
#pragma omp critical
            failure = std::current_exception();
        }
    }
    if (failure) std::rethrow_exception(failure);
}

}  // namespace saerl
