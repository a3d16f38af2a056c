// The roof that a decoder's speed stands under: whatever it does for a token must be read, and computed.
//   roof = min(read / bytes of a token, peak / FLOP of a token)            tokens/s
//                                                     "Roofline", Williams et al. 2009, doi:10.1145/1498765.1498785
#pragma once

#include <algorithm>

namespace moeskip {

/// eval/machine_limits.hpp measures it.
struct machine_limits {
  double read = 0;  // bytes/s, of a block that is read again and again: from the cache where it fits there
  double peak = 0;  // FLOP/s, f32

  double roof(double bytes_per_token, double flop_per_token) const {
    return std::min(read / std::max(1.0, bytes_per_token), peak / std::max(1.0, flop_per_token));
  }
};

}  // namespace moeskip
