// One token more than was accepted of late:  d = round(m) + 1,  m += rate (accepted − m) after every round that
// drafted.
#pragma once

#include <algorithm>
#include <cmath>
#include <string_view>

#include "moeskip/concepts/decoder.hpp"

namespace moeskip::draft_length {

struct adaptive {
  static constexpr std::string_view name = "adaptive";
  static constexpr bool reads_confidence = false;
  double rate = 0.2;  // weight of the last round
  int num_speculations = 12;

  constexpr int longest() const { return num_speculations; }
  constexpr std::string_view problem() const {
    if (num_speculations < 1) return "num_speculations must be at least 1";
    return rate > 0 && rate <= 1 ? "" : "adaptive.rate must be in (0, 1]";
  }

  template <class Session, class Draft> struct on {
    int most;
    double rate, accepted = 2;  // mean of late
    on(const adaptive& o, Session&, Draft&) : most(o.num_speculations), rate(o.rate) {}
    int plan(Session&, Draft&, int room) { return std::min({room, most, int(std::lround(accepted)) + 1}); }
    verdict judge(int, double) { return verdict::more; }
    void observe(const speculation_round& r) {
      if (r.verified > 0) accepted += rate * (r.accepted - accepted);
    }
  };
};

}  // namespace moeskip::draft_length
