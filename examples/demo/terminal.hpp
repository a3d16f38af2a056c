// The terminal: colour only where somebody sees it (standard output is a TTY and NO_COLOR is unset), 80
// columns where nothing better is known, and text of a model in a box that no control character can leave.
#pragma once

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "moeskip/base/check.hpp"
#include "moeskip/formats/utf8.hpp"

namespace demo {
namespace ms = moeskip;

/// Colours of the 256-colour palette; no_colour leaves the text as it is.
enum colour : int { no_colour = -1, grey = 245, green = 114, cyan = 80, blue = 75, violet = 177, amber = 215 };

/// "12.50"
inline std::string fixed(double value, int digits) {
  char out[64];
  std::snprintf(out, sizeof out, "%.*f", digits, value);
  return out;
}

/// "1:05"
inline std::string minutes(double seconds) {
  char out[64];
  const long whole = long(std::max(0.0, seconds) + 0.5);
  std::snprintf(out, sizeof out, "%ld:%02ld", whole / 60, whole % 60);
  return out;
}

/// Columns that UTF-8 text fills, if every character fills one.
inline int width(std::string_view text) {
  return int(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}
inline std::string left(std::string_view text, int columns) {
  return std::string(text) + std::string(std::size_t(std::max(0, columns - width(text))), ' ');
}
inline std::string right(std::string_view text, int columns) {
  return std::string(std::size_t(std::max(0, columns - width(text))), ' ') + std::string(text);
}

class terminal {
 public:
  terminal() {
    const char *no_color = std::getenv("NO_COLOR"), *kind = std::getenv("TERM");
    tty_ = isatty(STDOUT_FILENO) && !(kind && std::string_view(kind) == "dumb");
    colour_ = tty_ && !(no_color && *no_color);
  }
  bool tty() const { return tty_; }
  bool coloured() const { return colour_; }

  /// Asked anew each time, because windows change their size.
  int columns() const {
    winsize size{};
    const bool known = tty_ && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
    return known ? std::min<int>(size.ws_col, 100) : 80;
  }

  std::string paint(colour c, std::string_view text) const {
    if (!colour_ || c == no_colour) return std::string(text);
    return ms::text("\x1b[38;5;", int(c), "m", text, "\x1b[39m");
  }
  std::string bold(std::string_view text) const {
    return colour_ ? ms::text("\x1b[1m", text, "\x1b[22m") : std::string(text);
  }

  /// Shows text at once.
  void print(std::string_view text) const {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  }
  void heading(std::string_view text) const { print("\n" + bold(text) + "\n"); }

  /// "label      words …", broken between words so that continuations stand below the words.
  void item(std::string_view label, std::string_view words) const {
    constexpr int indent = 13;
    std::string out = "  " + paint(grey, left(label, indent - 2));
    for (int column = indent; !words.empty();) {
      const std::string_view word = words.substr(0, words.find(' '));
      words.remove_prefix(std::min(words.size(), word.size() + 1));
      if (column > indent && column + width(word) + 1 > columns())
        out += "\n" + std::string(indent, ' '), column = indent;
      else if (column > indent) out += ' ', ++column;
      out += word, column += width(word);
    }
    print(out + "\n");
  }

 private:
  bool tty_ = false, colour_ = false;
};

/// Running text behind a bar, broken at the right margin. Control characters, which could move the cursor or
/// change colours, become dots.
class text_box {
 public:
  explicit text_box(const terminal& to) : to_(to) {}

  /// Whole characters.
  void put(std::string_view text, colour c) {
    std::string out;
    while (!text.empty()) {
      const std::string_view one = text.substr(0, ms::utf8_first(text).length);
      text.remove_prefix(one.size());
      if (one == "\n") {
        newline(out);
        continue;
      }
      const bool first = column_ == 0, full = column_ >= to_.columns() - 6;
      if (full) newline(out);
      if (first || full) out += to_.paint(grey, "  │ ");
      out += to_.paint(c, one == "\t" ? "  " : is_control(one) ? "·" : one);
      column_ += one == "\t" ? 2 : 1;
    }
    to_.print(out);
  }
  void end() { to_.print(column_ ? "\n" : ""), column_ = 0; }

 private:
  /// C0 (below 0x20), DEL, and C1 (0xC2 0x80 to 0xC2 0x9F).
  static bool is_control(std::string_view one) {
    const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(one[i]); };
    return one.size() == 1 ? byte(0) < 0x20 || byte(0) == 0x7F : one.size() == 2 && byte(0) == 0xC2 && byte(1) < 0xA0;
  }
  void newline(std::string& out) {
    out += column_ ? "\n" : to_.paint(grey, "  │\n");
    column_ = 0;
  }

  const terminal& to_;
  int column_ = 0;
};

}  // namespace demo
