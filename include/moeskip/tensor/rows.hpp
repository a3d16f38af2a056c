// Where the rows of a call belong, and the keys and values that they see.
//   N rows (tokens) in the call   S slots (sequences)   C positions per slot   G key/value heads   d head size
#pragma once

#include <cstdint>

#include "moeskip/tensor/view.hpp"

namespace moeskip {

/// Row n of a call is the token at position[n] of sequence slot[n]. Training, prefill, decode and verify differ only
/// in these lists. Rows of one slot stand together, in order of position.
struct token_rows {
  vec<const int> slot;      // (N)
  vec<const int> position;  // (N)
  vec<const int> token{};   // (N) vocabulary ids, for routers that ask; may be empty

  MOESKIP_HD index_t size() const { return position.size(); }
  /// A number under 2^40 that tells row n from every other token of up to 65535 slots and 2^24 positions each, whatever
  /// rows stand beside it: where its random masks are drawn. Never 0.
  MOESKIP_HD std::uint64_t id(index_t n) const { return slot_id(n) | std::uint64_t(position[n]); }
  /// The same for all rows of row n's slot.
  MOESKIP_HD std::uint64_t slot_id(index_t n) const { return (std::uint64_t(slot[n]) % 0xffff + 1) << 24; }
  token_rows rows(index_t first, index_t count) const {
    return {{slot.data() + first, count},
            {position.data() + first, count},
            token.size() ? vec<const int>{token.data() + first, count} : token};
  }
  /// Whether row n directly follows row n - 1 in its sequence.
  MOESKIP_HD bool follows(index_t n) const {
    return n > 0 && n < size() && slot[n] == slot[n - 1] && position[n] == position[n - 1] + 1;
  }
};

/// What one layer remembers of the tokens before: keys (rotated) and values, and where the router follows its
/// predecessor (concepts/router.hpp) the experts of each, -1 where it skipped the layer.
template <class T> struct kv_layer {
  cube<T> keys;         // (S, C, G·d)
  cube<T> values;       // (S, C, G·d)
  cube<int> experts{};  // (S, C, K) or empty
};

}  // namespace moeskip
