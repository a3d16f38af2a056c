// Where the rows of a call belong, and the keys and values that they see.
//   N rows (tokens) in the call   S slots (sequences)   C positions per slot   G key/value heads   d head size
#pragma once

#include "moeskip/tensor/view.hpp"

namespace moeskip {

/// Row n of a call is the token at position[n] of sequence slot[n]. Training, prefill, decode and verify differ only
/// in these two lists. Rows of one slot stand together, in order of position.
struct token_rows {
  vec<const int> slot;      // (N)
  vec<const int> position;  // (N)

  index_t size() const { return position.size(); }
  token_rows rows(index_t first, index_t count) const {
    return {{slot.data() + first, count}, {position.data() + first, count}};
  }
};

/// Keys (rotated) and values of one layer.
template <class T> struct kv_layer {
  cube<T> keys;    // (S, C, G·d)
  cube<T> values;  // (S, C, G·d)
};

}  // namespace moeskip
