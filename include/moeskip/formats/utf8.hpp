// UTF-8, strictly: no overlong forms, no surrogates, nothing above U+10FFFF.
// Source: The Unicode Standard, table 3-7 (well-formed byte sequences); repair replaces each maximal
// ill-formed part by one U+FFFD, as section 3.9 recommends and as browsers and Python do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace moeskip {

inline constexpr std::string_view replacement_character = "\xEF\xBF\xBD";  // U+FFFD

enum class utf8_status { valid, invalid, incomplete };

/// What the first bytes of a text are: one character, an ill-formed part, or a character whose rest is
/// missing.
struct utf8_prefix {
  utf8_status status;
  std::size_t length;  // bytes, 1 to 4
};

/// Looks at the first character of a text that is not empty.
constexpr utf8_prefix utf8_first(std::string_view bytes) {
  const auto byte_at = [&](std::size_t i) { return static_cast<unsigned char>(bytes[i]); };
  const unsigned first = byte_at(0);
  if (first < 0x80) return {utf8_status::valid, 1};
  if (first < 0xC2 || first > 0xF4) return {utf8_status::invalid, 1};
  const std::size_t length = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  for (std::size_t i = 1; i < length; ++i) {
    if (i == bytes.size()) return {utf8_status::incomplete, i};
    // The second byte is restricted where the first alone would allow overlong forms, surrogates or too large
    // numbers.
    const unsigned low = i > 1 ? 0x80 : first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
    const unsigned high = i > 1 ? 0xBF : first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
    if (byte_at(i) < low || byte_at(i) > high) return {utf8_status::invalid, i};
  }
  return {utf8_status::valid, length};
}

/// The offset of the first byte that is not well-formed UTF-8; bytes.size() where all is well.
inline std::size_t utf8_error_offset(std::string_view bytes) {
  std::size_t at = 0;
  while (at < bytes.size()) {
    std::uint64_t eight;  // most text is ASCII: look at eight bytes at once
    while (bytes.size() - at >= sizeof eight) {
      std::memcpy(&eight, bytes.data() + at, sizeof eight);
      if (eight & 0x8080808080808080u) break;
      at += sizeof eight;
    }
    if (at == bytes.size()) break;
    const utf8_prefix first = utf8_first(bytes.substr(at));
    if (first.status != utf8_status::valid) return at;
    at += first.length;
  }
  return at;
}

inline bool is_utf8(std::string_view bytes) { return utf8_error_offset(bytes) == bytes.size(); }

/// Turns bytes that arrive in pieces into text that can be printed at once: a character is held back until it
/// is whole, and what can never become one is replaced by U+FFFD.
class utf8_stream {
 public:
  /// Takes more bytes, returns the characters that are now whole.
  std::string push(std::string_view bytes) {
    pending_ += bytes;
    std::string out;
    std::size_t at = 0;
    while (at < pending_.size()) {
      const std::string_view rest = std::string_view(pending_).substr(at);
      const utf8_prefix first = utf8_first(rest);
      if (first.status == utf8_status::incomplete) break;
      out += first.status == utf8_status::valid ? rest.substr(0, first.length) : replacement_character;
      at += first.length;
    }
    pending_.erase(0, at);
    return out;
  }

  /// The end: U+FFFD where a character was left unfinished. The stream can be used again.
  std::string flush() {
    const bool unfinished = !pending_.empty();
    pending_.clear();
    return std::string(unfinished ? replacement_character : "");
  }

 private:
  std::string pending_;  // at most 3 bytes between calls
};

}  // namespace moeskip
