// How byte-level tokenizers write bytes in tokenizer.json: printable ones of Latin-1 as themselves, the others as the
// characters from U+0100 on, in their order ("Ġ" is a space).                            GPT-2's bytes_to_unicode
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>

#include "moeskip/formats/tokenizer/unicode.hpp"

namespace moeskip::tokenizer {

namespace detail {
struct byte_alphabet {
  std::array<int, 0x180> byte_of{};  // of a character; -1: it stands for none
  byte_alphabet() {
    byte_of.fill(-1);
    char32_t next = 0x100;
    for (char32_t b = 0; b < 256; ++b) {
      const bool printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      byte_of[printable ? b : next++] = int(b);
    }
  }
};
}  // namespace detail

/// The bytes that a token's text in tokenizer.json stands for; none where it has other characters.
inline std::optional<std::string> alphabet_bytes(std::string_view written) {
  static const detail::byte_alphabet alphabet;
  std::string out;
  for (std::size_t at = 0; at < written.size();) {
    const character c = character::first(written.substr(at));
    const int byte = c.code < alphabet.byte_of.size() ? alphabet.byte_of[c.code] : -1;
    if (byte < 0) return {};
    out += static_cast<char>(byte), at += c.bytes;
  }
  return out;
}

/// The same, or the text itself: what the token is in decoded text.
inline std::string token_bytes(std::string_view written) {
  return alphabet_bytes(written).value_or(std::string(written));
}

}  // namespace moeskip::tokenizer
