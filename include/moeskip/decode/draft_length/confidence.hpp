// Drafting goes on while the draft is sure of itself: a token whose draft gives its most likely choice less than the
// threshold is not verified any more.
//                                   Draft & Verify, arXiv:2309.08168, section 3.3, with a threshold that does not move
#pragma once

#include <algorithm>
#include <string_view>

#include "moeskip/concepts/decoder.hpp"

namespace moeskip::draft_length {

struct confidence {
  static constexpr std::string_view name = "confidence";
  static constexpr bool reads_confidence = true;
  double threshold = 0.6;  // probability
  int num_speculations = 8;

  constexpr int longest() const { return num_speculations; }
  constexpr std::string_view problem() const {
    if (num_speculations < 1) return "num_speculations must be at least 1";
    return threshold >= 0 && threshold <= 1 ? "" : "confidence.threshold must be in [0, 1]";
  }

  template <class Session, class Draft> struct on {
    int most;
    double threshold;
    on(const confidence& o, Session&, Draft&) : most(o.num_speculations), threshold(o.threshold) {}
    int plan(Session&, Draft&, int room) { return std::min(room, most); }
    verdict judge(int, double p) { return p < threshold ? verdict::drop : verdict::more; }
    void observe(const speculation_round&) {}
  };
};

}  // namespace moeskip::draft_length
