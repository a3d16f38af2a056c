// Errors that say what was expected and what was got. Every failure of the library is an exception derived from
// moeskip::error; nothing aborts. Checks sit at the doors (shapes once per op call, files, options), never in loops.
#pragma once

#include <charconv>
#include <concepts>
#include <stdexcept>
#include <string>
#include <string_view>

namespace moeskip {

struct error : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct shape_error : error {  // extents of views do not fit together
  using error::error;
};
struct config_error : error {  // sizes, options or ids that make no sense
  using error::error;
};
struct file_error : error {  // unreadable, unwritable, truncated, corrupt or mismatching files
  using error::error;
};

namespace detail {

inline void append(std::string& out, std::string_view text) { out += text; }
inline void append(std::string& out, char c) { out += c; }
template <std::same_as<bool> T> void append(std::string& out, T value) {
  out += value ? "true" : "false";
}  // no pointers

template <class N>
  requires((std::integral<N> || std::floating_point<N>)&&!std::same_as<N, bool> && !std::same_as<N, char>)
void append(std::string& out, N value) {
  char digits[64];
  out.append(digits, std::to_chars(digits, digits + sizeof digits, value).ptr);
}

}  // namespace detail

/// Joins strings and numbers: text("rows ", 3) == "rows 3". Floats print in their shortest exact form.
template <class... Parts> std::string text(const Parts&... parts) {
  std::string out;
  (detail::append(out, parts), ...);
  return out;
}

/// Throws E with the joined parts as its message.
template <class E = error, class... Parts> [[noreturn]] void fail(const Parts&... parts) { throw E(text(parts...)); }

}  // namespace moeskip

/// MOESKIP_CHECK(shape_error, rows == n, "attend: expected ", n, " rows, got ", rows)
#define MOESKIP_CHECK(error_type, condition, ...) \
  do {                                            \
    if (!(condition)) [[unlikely]]                \
      ::moeskip::fail<error_type>(__VA_ARGS__);   \
  } while (false)
