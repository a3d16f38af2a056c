// What byte-level tokenizers ask about characters: letter, number, space; and text in canonical composition (NFC).
// Source: The Unicode Standard, sections 3.11 and 3.12; tables by tools/make_unicode_tables.py.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>

#include "moeskip/formats/tokenizer/unicode_tables.hpp"
#include "moeskip/formats/utf8.hpp"

namespace moeskip::tokenizer {

/// Where a character ends and which it is; the text is UTF-8.
struct character {
  char32_t code;
  std::size_t bytes;

  static character first(std::string_view text) {
    const auto at = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
    const unsigned lead = at(0);
    if (lead < 0x80) return {lead, 1};
    const std::size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    char32_t code = lead & (0xFFu >> (length + 1));
    for (std::size_t i = 1; i < length; ++i) code = code << 6 | (at(i) & 0x3Fu);
    return {code, length};
  }
};

inline void append_utf8(std::string& out, char32_t c) {
  const auto tail = [&](int shift) { out += static_cast<char>(0x80 | (c >> shift & 0x3F)); };
  if (c < 0x80) out += static_cast<char>(c);
  else if (c < 0x800) out += static_cast<char>(0xC0 | c >> 6), tail(0);
  else if (c < 0x10000) out += static_cast<char>(0xE0 | c >> 12), tail(6), tail(0);
  else out += static_cast<char>(0xF0 | c >> 18), tail(12), tail(6), tail(0);
}

enum class category : unsigned char { letter, number, space, line_end, other };  // line_end: \r and \n, spaces too

namespace detail {

template <std::size_t N> bool within(const unicode::range (&ranges)[N], char32_t c) {
  const auto* after = std::upper_bound(std::begin(ranges), std::end(ranges), c,
                                       [](char32_t value, const unicode::range& r) { return value < r.first; });
  return after != std::begin(ranges) && c <= std::prev(after)->last;
}

inline category look_up(char32_t c) {
  if (c == '\r' || c == '\n') return category::line_end;
  if ((c >= 0x9 && c <= 0xD) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) ||
      c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000)
    return category::space;
  if (within(unicode::letters, c)) return category::letter;
  return within(unicode::numbers, c) ? category::number : category::other;
}

struct low_categories {
  category of[0x800];
  low_categories() {
    for (char32_t c = 0; c < 0x800; ++c) of[c] = look_up(c);
  }
};

}  // namespace detail

inline category category_of(char32_t c) {
  static const detail::low_categories low;
  return c < 0x800 ? low.of[c] : detail::look_up(c);
}

namespace detail {

inline int combining_class(char32_t c) {
  if (c < 0x300) return 0;
  const auto* after = std::upper_bound(std::begin(unicode::classes), std::end(unicode::classes), c,
                                       [](char32_t value, const unicode::class_range& r) { return value < r.first; });
  return after != std::begin(unicode::classes) && c <= std::prev(after)->last ? std::prev(after)->combining : 0;
}

inline constexpr char32_t hangul = 0xAC00, hangul_l = 0x1100, hangul_v = 0x1161, hangul_t = 0x11A7;
inline constexpr char32_t vowels = 21, tails = 28, syllables = 19 * vowels * tails;

inline void decompose(std::u32string& out, char32_t c) {
  if (c >= hangul && c < hangul + syllables) {
    const char32_t s = c - hangul;
    out += hangul_l + s / (vowels * tails), out += hangul_v + s % (vowels * tails) / tails;
    if (s % tails) out += hangul_t + s % tails;
    return;
  }
  const auto* found = std::lower_bound(std::begin(unicode::decompositions), std::end(unicode::decompositions), c,
                                       [](const unicode::decomposition& d, char32_t value) { return d.whole < value; });
  if (c < 0xC0 || found == std::end(unicode::decompositions) || found->whole != c) {
    out += c;
    return;
  }
  decompose(out, found->first);
  if (found->second) decompose(out, found->second);
}

/// The character that stands for two; 0 where there is none.
inline char32_t composed(char32_t a, char32_t b) {
  if (a >= hangul_l && a < hangul_l + 19 && b >= hangul_v && b < hangul_v + vowels)
    return hangul + ((a - hangul_l) * vowels + (b - hangul_v)) * tails;
  if (a >= hangul && a < hangul + syllables && (a - hangul) % tails == 0 && b > hangul_t && b < hangul_t + tails)
    return a + (b - hangul_t);
  const auto pair = [](std::uint16_t i) {
    return std::pair{unicode::decompositions[i].first, unicode::decompositions[i].second};
  };
  const auto* found =
      std::lower_bound(std::begin(unicode::compositions), std::end(unicode::compositions), std::pair{a, b},
                       [&](std::uint16_t i, const std::pair<char32_t, char32_t>& value) { return pair(i) < value; });
  const bool is = found != std::end(unicode::compositions) && pair(*found) == std::pair{a, b};
  return is ? unicode::decompositions[*found].whole : 0;
}

}  // namespace detail

/// Well-formed UTF-8 in canonical composition. Text without characters from U+0300 on is returned as it is.
inline std::string to_nfc(std::string_view text) {
  const bool plain =
      std::none_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) >= 0xCC; });
  if (plain) return std::string(text);
  std::u32string decomposed;
  for (std::size_t at = 0; at < text.size();) {
    const character c = character::first(text.substr(at));
    detail::decompose(decomposed, c.code), at += c.bytes;
  }
  for (std::size_t i = 0; i < decomposed.size();) {  // marks in the order of their classes
    std::size_t end = i;
    while (end < decomposed.size() && detail::combining_class(decomposed[end]) != 0) ++end;
    std::stable_sort(decomposed.begin() + std::ptrdiff_t(i), decomposed.begin() + std::ptrdiff_t(end),
                     [](char32_t a, char32_t b) { return detail::combining_class(a) < detail::combining_class(b); });
    i = end + 1;
  }
  std::u32string composed;
  std::size_t starter = std::u32string::npos;  // where the last one stands in `composed`
  for (const char32_t c : decomposed) {
    const int mark = detail::combining_class(c);
    const int before = composed.empty() ? 0 : detail::combining_class(composed.back());
    // Blocked where something of the same or a higher class stands between the starter and this one.
    const bool adjacent = starter != std::u32string::npos && starter + 1 == composed.size();
    const bool open = starter != std::u32string::npos && (adjacent || (before != 0 && before < mark));
    if (const char32_t whole = open ? detail::composed(composed[starter], c) : 0) {
      composed[starter] = whole;
      continue;
    }
    if (mark == 0) starter = composed.size();
    composed += c;
  }
  std::string out;
  for (const char32_t c : composed) append_utf8(out, c);
  return out;
}

}  // namespace moeskip::tokenizer
