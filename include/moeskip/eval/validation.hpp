// What fit() asks for at intervals: how well each exit predicts a text that is not trained on.
#pragma once

#include <span>
#include <vector>

#include "moeskip/eval/perplexity.hpp"
#include "moeskip/train/trainer.hpp"

namespace moeskip {

/// A function that evaluates the trainer's model as evaluate() does; its averaged weights where it keeps them. Trainer
/// and tokens must outlive it.
template <class Trainer>
auto validation(Trainer& run, std::span<const int> tokens, int length, int sequences = 8, int max_windows = 0) {
  return [&run, tokens, length, sequences, max_windows]() -> std::vector<exit_quality> {
    if (!run.keeps_average()) return evaluate(run.trained(), tokens, length, sequences, max_windows);
    const averaged_weights averaged(run);
    return evaluate(run.trained(), tokens, length, sequences, max_windows);
  };
}

}  // namespace moeskip
