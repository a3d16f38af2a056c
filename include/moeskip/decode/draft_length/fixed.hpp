// A fixed number of drafted tokens a round.
#pragma once

#include <algorithm>
#include <string_view>

#include "moeskip/concepts/decoder.hpp"

namespace moeskip::draft_length {

struct fixed {
  static constexpr std::string_view name = "fixed";
  static constexpr bool reads_confidence = false;
  int num_speculations = 4;

  constexpr int longest() const { return num_speculations; }
  constexpr std::string_view problem() const {
    return num_speculations >= 1 ? "" : "num_speculations must be at least 1";
  }

  template <class Session, class Draft> struct on {
    int most;
    on(const fixed& o, Session&, Draft&) : most(o.num_speculations) {}
    int plan(Session&, Draft&, int room) { return std::min(room, most); }
    verdict judge(int, double) { return verdict::more; }
    void observe(const speculation_round&) {}
  };
};

}  // namespace moeskip::draft_length
