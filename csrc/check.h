// Guards of the compiled side. The public checks, with their messages, are in Python; these catch a caller
// that came past them, before anything is addressed.
#pragma once

#include <stdexcept>
#include <string>

namespace saerl {

inline void require(bool holds, const std::string& message) {
    if (!holds) throw std::invalid_argument("saerl_fast._native: " + message);
}

}  // namespace saerl
