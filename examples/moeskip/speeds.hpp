// Decoders timed against each other on the same prompts: what bench prints and report draws.
#pragma once

#include <string>
#include <vector>

#include "command.hpp"
#include "moeskip/eval/report/data.hpp"

namespace tool {

/// The prompts.
struct prompt_options {
  std::string prompt;
  int prompts = 6, tokens = 0;

  /// least: of prompts.
  void declare(CLI::App& app, int least);
};

/// The same prompts through one decoder.
struct contestant {
  std::string name, note;
  decoder_choice how;
  std::vector<continuation> out{};
  ms::decode_stats total{};
  ms::stage_work work{};  // for all tokens
};

struct race {
  texts prompts{};
  int tokens = 0;  // that each is continued by
  std::vector<contestant> all{};
  ms::machine_limits limits{};
  double bytes_per_weight = 0;

  /// The first one decodes plainly.
  std::vector<ms::report::decoder_speed> speeds() const;
};

/// Pieces of the text as prompts. Throws config_error that names the option.
race prepare(any_model& m, std::span<const int> tokens, const prompt_options& o, float threshold);
/// The decoders over all prompts, interleaved so that a busy machine disturbs all alike.
void run(race& r, any_model& m);

}  // namespace tool
