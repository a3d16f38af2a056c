// What the operating system says about a failed call, in words.
#pragma once

#include <string>
#include <system_error>

namespace moeskip {

/// "No such file or directory" for ENOENT; thread-safe, which strerror is not.
inline std::string os_error(int code) { return std::generic_category().message(code); }

}  // namespace moeskip
