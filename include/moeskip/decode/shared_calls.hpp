// Who runs the model for a session that does not run it by itself: because others share the calls
// (decode/batch/merged_calls.hpp), or because they are counted (eval/counted_session.hpp).
#pragma once

#include "moeskip/tensor/rows.hpp"

namespace moeskip {

class batch_lanes;

/// A call returns when its rows are done. T: scalar of the activations.
template <class T> struct shared_calls {
  /// Layers [first, last) on x (N, D), in place.
  virtual void run(int first, int last, mat<T> x, const token_rows& rows, int most_experts) = 0;
  /// out (N, n) of streams x (N, D).
  virtual void logits(mat<T> out, mat<const T> x, int exit_layer, int slot) = 0;
  /// Keys and values of layers [first, L) for rows that left with streams x (N, D).
  virtual void propagate(int first, mat<const T> x, const token_rows& rows) = 0;
  /// Seconds that `slot` spent working: on its own, and its share of what was done for several.
  virtual double seconds(int slot) const = 0;
  /// Where the sequences wait for each other; null where there is one alone.
  virtual batch_lanes* lanes() { return nullptr; }

 protected:
  ~shared_calls() = default;
};

}  // namespace moeskip
