// Screen::sift, a template: for the screens alone.
#pragma once

#include <algorithm>

#include "rescoring.h"
#include "screening.h"

namespace saerl {

template <typename Floor>
void Screen::sift(Row& row, int64_t i, const Rescoring& rescoring, const Floor& floor,
                  ScreenCounts& counts) const {
    const auto rest = row.candidates.begin() + row.expected, end = row.candidates.end();
    const auto error = [&](const Candidate& c) { return rescoring.float_error(i, c.column, c.score); };
    counts.sieved = end - rest;
    counts.outside =
        std::count_if(rest, end, [&](const Candidate& c) { return c.score - error(c) > c.upper; });
    const auto below = [&](const Candidate& c) { return c.score + error(c) < floor(c.column); };
    row.candidates.erase(std::remove_if(rest, end, below), end);
}

}  // namespace saerl
