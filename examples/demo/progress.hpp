// How training goes: two lines that are drawn again and again on a terminal, and one plain line for each
// twentieth of the run anywhere else.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <string>

#include "moeskip/model/describe.hpp"
#include "moeskip/train/loss.hpp"
#include "terminal.hpp"

namespace demo {

using seconds = std::chrono::duration<double>;
using clock = std::chrono::steady_clock;

class progress {
 public:
  progress(const terminal& to, std::uint64_t steps, int layers, int tokens_per_step)
      : to_(to), steps_(steps), layers_(layers), tokens_per_step_(tokens_per_step) {}

  /// last: nothing will follow, so this is drawn however short ago the one before was.
  template <class T> void show(std::uint64_t done, const ms::training_losses<T>& losses, bool last) {
    for (std::size_t e = 1; e <= std::size_t(layers_); ++e)  // exits take turns: those that rest keep their last loss
      if (losses.exits[e] > 0)
        exits_[e] = exits_[e] > 0 ? 0.8 * exits_[e] + 0.2 * double(losses.exits[e]) : losses.exits[e];
    balance_ = double(losses.balance);
    const clock::time_point now = clock::now();
    const double elapsed = seconds(now - start_).count();
    rate_ = double(done) * tokens_per_step_ / elapsed;
    left_ = elapsed / double(done) * double(steps_ - done);
    if (to_.tty()) {
      if (drawn_ && !last && now - last_ < std::chrono::milliseconds(100)) return;
      draw(done);
      last_ = now;
    } else if (done == 1 || last || done * 20 / steps_ != (done - 1) * 20 / steps_) {
      to_.print(ms::text("  step ", right(ms::text(done), width(ms::text(steps_))), "/", steps_, "  ", figures(), "  ",
                         minutes(left_), " left\n"));
    }
  }

 private:
  void draw(std::uint64_t done) {
    const std::string count =
        ms::text("step ", right(ms::grouped(ms::index_t(done)), width(ms::grouped(ms::index_t(steps_)))), " of ",
                 ms::grouped(ms::index_t(steps_)));
    const std::string rest =
        ms::text(right(ms::text(done * 100 / steps_), 3), " %  ", right(minutes(left_), 5), " left");
    const int room = std::max(8, to_.columns() - 2 - width(count) - width(rest) - 6);
    const int filled = int(done * std::uint64_t(room) / steps_);
    std::string bar, track;
    for (int i = 0; i < room; ++i) (i < filled ? bar : track) += i < filled ? "━" : "─";
    // Without line wrap, so that a narrow window cuts the lines and the cursor finds back.
    to_.print(ms::text(drawn_ ? "\x1b[2A\r" : "", "\x1b[?7l\x1b[K  ", count, "  ", to_.paint(cyan, bar),
                       to_.paint(grey, track), "  ", rest, "\n\x1b[K  ", figures(), "\x1b[?7h\n"));
    drawn_ = true;
  }

  /// The loss of every exit and of the full depth (nats per byte), how evenly experts are used (1:
  /// perfectly), speed.
  std::string figures() const {
    std::string out = "loss";
    for (int e = 1; e <= layers_; ++e) {
      const double loss = exits_[std::size_t(e)];
      if (loss > 0)
        out +=
            "  " + to_.paint(grey, ms::text("@", e, " ")) + (e == layers_ ? to_.bold(fixed(loss, 3)) : fixed(loss, 3));
    }
    return ms::text(out, to_.paint(grey, "  balance "), fixed(balance_, 2), "  ", ms::grouped(ms::index_t(rate_)),
                    to_.paint(grey, " tokens/s"));
  }

  const terminal& to_;
  std::uint64_t steps_;
  int layers_, tokens_per_step_;
  clock::time_point start_ = clock::now(), last_{};
  std::array<double, std::size_t(ms::layer_set::capacity) + 1> exits_{};
  double balance_ = 0, rate_ = 0, left_ = 0;
  bool drawn_ = false;
};

}  // namespace demo
