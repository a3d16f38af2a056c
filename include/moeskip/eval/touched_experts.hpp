// How many experts a token costs that stands in the end, drafts and verifications, accepted or not, included.
//   touched = Σ over calls and MoE layers of distinct experts / tokens emitted        plain decoding: K · MoE layers
//   gain    = touched by plain decoding / touched                                     over 1: speculation reads fewer experts
// What speculation must make up for on a MoE: a verify of n tokens reads the union of their experts, a rejected token's
// among them.                    "Utility-driven speculative decoding", arXiv:2506.20675; counts as in MoESD,
// arXiv:2505.19645
#pragma once

#include "moeskip/decode/session.hpp"
#include "moeskip/parts/sizes.hpp"

namespace moeskip {

/// Experts per token that stands. 0 where there are no tokens.
inline double experts_touched(const decode_stats& s) { return s.tokens ? double(s.experts_read) / s.tokens : 0; }

/// Against plain decoding with `per_token` experts a MoE layer; 0 where no expert was read.
inline double touched_gain(const decode_stats& s, const sizes& size, double per_token) {
  const double touched = experts_touched(s);
  return touched > 0 ? per_token * size.moe_layers() / touched : 0;
}

}  // namespace moeskip
