// What the calls of a batch had in common.
#pragma once

namespace moeskip {

/// Calls of a model.
struct call_counts {
  long long layer_calls = 0, layer_rows = 0;  // calls of single layers, and the rows in them
  long long experts_read = 0;                 // distinct experts of each call and layer
};

/// Counts are of the batch's own model; prompts are not counted.
struct batch_stats : call_counts {
  call_counts drafts{};  // of the models that drafted in sessions beside it (draft::small_model), all together
  double seconds = 0;
};

}  // namespace moeskip
