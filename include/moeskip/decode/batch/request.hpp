// What a sequence of a batch waits for: a call of a model. Which requests one call can serve is decided by what stands
// here; the numbers themselves are the business of whoever merges the calls of that model.
#pragma once

#include <span>

#include "moeskip/base/bit_set.hpp"
#include "moeskip/tensor/view.hpp"

namespace moeskip {

struct call_request;

/// Runs together what is asked of one model (decode/batch/merged_calls.hpp).
class call_merger {
 public:
  /// drafts: of a model that proposes tokens to the one that the batch is about.
  explicit call_merger(bool drafts) : drafts_(drafts) {}
  call_merger(const call_merger&) = delete;
  virtual ~call_merger() = default;
  bool drafts() const { return drafts_; }

  /// Does what each of the group wants, requests for layers as far as `stop` only.
  virtual void serve(std::span<call_request* const> group, int stop) = 0;

 private:
  bool drafts_;
};

struct call_request {
  enum class kind { head, fill, layers };  // in this order at the same layer: what sets others free goes first

  call_merger* merger;
  kind what;
  int layer, last;     // where it stands, and where it wants to be
  index_t rows;        // N
  index_t logits = 0;  // of each row, that a head is asked for
  int most_experts = expert_set::capacity;
  int passed_over = 0;  // times that others were served instead

  /// Whether one call can serve both.
  bool joins(const call_request& other) const {
    return merger == other.merger && what == other.what && layer == other.layer && logits == other.logits &&
           most_experts == other.most_experts;
  }
};

}  // namespace moeskip
