// Ctrl-C while training: the first is remembered, so that the run can save and stop; the second goes to whoever handled
// it before, which for most programs means that they end at once.
#pragma once

#include <csignal>

#include <atomic>

namespace moeskip {

/// While it lives, SIGINT only raises a flag; the handler of before comes back when it is destroyed. Guards within
/// guards share the flag. POSIX.
class interrupt_guard {
 public:
  interrupt_guard() {
    if (depth++ > 0) return;
    caught = 0;
    struct sigaction ours {};
    ours.sa_handler = remember;
    ours.sa_flags = SA_RESTART;  // writing files goes on
    sigemptyset(&ours.sa_mask);
    sigaction(SIGINT, &ours, &before);
  }
  interrupt_guard(const interrupt_guard&) = delete;
  ~interrupt_guard() {
    if (--depth == 0) sigaction(SIGINT, &before, nullptr);
  }

  /// Whether SIGINT has come since the first guard was made.
  bool raised() const { return caught > 0; }

 private:
  static void remember(int signal) {
    if (++caught < 2) return;
    sigaction(SIGINT, &before, nullptr);
    raise(signal);
  }

  static inline std::atomic<int> caught{0}, depth{0};
  static inline struct sigaction before {};
};

}  // namespace moeskip
