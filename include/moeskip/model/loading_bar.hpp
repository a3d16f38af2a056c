// A progress bar for loading: pass it to load_pretrained, load_pretrained_mapped, load_any or load_any_mapped.
//   auto model = ms::load_pretrained<ms::presets::olmoe, ms::cpu<ms::bf16>>("folder", {}, ms::loading_bar("folder"));
//   folder  ━━━━━━━━━━━━━━━━━━━━━━━─────────────────  58 %   4 s left
// Drawn on a terminal alone, once loading has taken 0.3 s, and gone when it ends. Opt-in: POSIX.
#pragma once

#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <string>
#include <utility>

#include "moeskip/base/check.hpp"
#include "moeskip/base/config.hpp"

namespace moeskip {

class loading_bar {
 public:
  /// what: a name before the bar. to: where it is drawn if that is a terminal.
  explicit loading_bar(std::string what, std::FILE* to = stderr)
      : what_(std::move(what)), to_(::isatty(::fileno(to)) ? to : nullptr) {}
  loading_bar(const loading_bar&) = delete;
  ~loading_bar() { erase(); }

  /// done of all elements; by one thread at a time.
  void operator()(index_t done, index_t all) {
    if (done >= all) erase();
    const auto now = clock::now();
    if (!to_ || done >= all || done <= 0 || now - start_ < std::chrono::milliseconds(300) ||
        (drawn_ && now - last_ < std::chrono::milliseconds(100)))
      return;
    last_ = now, drawn_ = true;
    const double share = double(done) / double(all);
    const double left = std::chrono::duration<double>(now - start_).count() * (1 / share - 1);
    std::string bar;
    for (int i = 0; i < width; ++i) bar += i < int(share * width) ? "━" : "─";
    write(text("\r\x1b[K", what_, "  \x1b[36m", bar, "\x1b[0m  ", int(100 * share), " %",
               share < 0.01 ? std::string() : text("  ", int(std::ceil(left)), " s left")));
  }

 private:
  using clock = std::chrono::steady_clock;
  static constexpr int width = 40;

  void erase() {
    if (std::exchange(drawn_, false)) write("\r\x1b[K");
  }
  void write(const std::string& line) {
    std::fputs(line.c_str(), to_);
    std::fflush(to_);
  }

  std::string what_;
  std::FILE* to_;  // null: no terminal
  clock::time_point start_ = clock::now(), last_{};
  bool drawn_ = false;
};

}  // namespace moeskip
