// Splitting text into the pieces that byte-pair encoding works on, by hand-written scanners that match what these
// regular expressions match, longest first as written (a regular-expression engine overflows its stack on long runs):
//   gpt2    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+               GPT-2, GPT-NeoX, OLMo
//   llama3  (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
//   qwen2   the same with \p{N} instead of \p{N}{1,3}
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string_view>

#include "moeskip/formats/tokenizer/unicode.hpp"

namespace moeskip::tokenizer {

struct pre_tokenizer {
  std::string_view name, pattern;
  bool newer;  // llama3 and qwen2: contractions in any case, one odd character before letters, line ends
  int digits;  // numbers in a piece; 0: all that stand together

  /// The bytes of the first piece of a text that is UTF-8 and not empty.
  std::size_t first(std::string_view text) const {
    const character c = character::first(text);
    const category is = category_of(c.code);
    if (c.code == '\'')
      if (const std::size_t length = contraction(text)) return length;
    if (is == category::letter) return run<category::letter>(text, 0);
    if (newer ? is == category::space || is == category::other : c.code == ' ')
      if (category_at(text, c.bytes) == category::letter) return run<category::letter>(text, c.bytes);
    if (is == category::number) return numbers(text, 0);
    if (!newer && c.code == ' ' && category_at(text, 1) == category::number) return numbers(text, 1);
    const std::size_t skip = c.code == ' ' ? 1 : 0;
    if (category_at(text, skip) == category::other) {
      std::size_t end = run<category::other>(text, skip);
      while (newer && end < text.size() && (text[end] == '\r' || text[end] == '\n')) ++end;
      return end;
    }
    return spaces(text);
  }

 private:
  static std::optional<category> category_at(std::string_view text, std::size_t at) {
    if (at >= text.size()) return {};
    return category_of(character::first(text.substr(at)).code);
  }
  template <category Is> static std::size_t run(std::string_view text, std::size_t at) {
    while (at < text.size()) {
      const character c = character::first(text.substr(at));
      if (category_of(c.code) != Is) break;
      at += c.bytes;
    }
    return at;
  }
  std::size_t numbers(std::string_view text, std::size_t at) const {
    if (digits == 0) return run<category::number>(text, at);
    for (int i = 0; i < digits && category_at(text, at) == category::number; ++i)
      at += character::first(text.substr(at)).bytes;
    return at;
  }

  /// The length of 's 't 're 've 'm 'll 'd at the start of text, 0 where there is none. In any case includes the long
  /// s, U+017F, which folds to s.
  std::size_t contraction(std::string_view text) const {
    const auto lower = [&](std::size_t i) -> char {
      if (i >= text.size()) return 0;
      const char c = text[i];
      return newer && c >= 'A' && c <= 'Z' ? static_cast<char>(c + ('a' - 'A')) : c;
    };
    const char a = lower(1), b = lower(2);
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return 3;
    return newer && text.substr(1).starts_with("\xC5\xBF") ? 3 : 0;
  }

  /// A run of spaces: up to its last line end; or else all of it but the one before what follows.
  std::size_t spaces(std::string_view text) const {
    std::size_t end = 0, last = 0, after_line = 0;
    while (end < text.size()) {
      const character c = character::first(text.substr(end));
      const category is = category_of(c.code);
      if (is != category::space && is != category::line_end) break;
      last = end, end += c.bytes;
      if (is == category::line_end) after_line = end;
    }
    if (newer && after_line) return after_line;
    return end == text.size() || last == 0 ? end : last;
  }
};

inline constexpr std::array<pre_tokenizer, 3> pre_tokenizers{{
    {"gpt2", R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)", false, 0},
    {"llama3",
     R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     true, 3},
    {"qwen2",
     R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     true, 1},
}};

}  // namespace moeskip::tokenizer
