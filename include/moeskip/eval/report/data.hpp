// What a report shows. What is empty is left out of the page.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moeskip/decode/session.hpp"
#include "moeskip/eval/depth.hpp"
#include "moeskip/eval/expert_observer.hpp"
#include "moeskip/eval/reliability.hpp"

namespace moeskip::report {

/// One prompt continued by one decoder.
struct decoded_text {
  std::string name{}, note{};  // "early exit", and what the reader should know
  std::string prompt{};
  std::vector<std::string> pieces{};  // the text of each token
  std::vector<emitted> tokens{};
  bool speculative = false;
};

/// What a token costs in one stage, or half of a round.
struct stage_cost {
  std::string name{};
  double seconds = 0, bytes = 0, flop = 0;
};

/// A decoder over several prompts.
struct decoder_speed {
  std::string name{};
  decode_stats stats{};
  double relative = 1, lowest = 1, highest = 1;  // speed, plain decoding being 1: median prompt and the extremes
  double mean_exit = 0;
  double bytes = 0, flop = 0;        // read and computed for a token; 0: not known
  double roof = 0;                   // tokens/s that the machine allows at best (eval/machine_limits.hpp); 0: not known
  double same = 1;                   // share of prompts continued token for token as plain decoding does
  std::vector<stage_cost> stages{};  // in the order of stage_names, or empty
  stage_cost drafting{}, verifying{};  // the same otherwise divided, where it speculates

  stage_cost in(std::string_view stage) const {
    for (const stage_cost& s : stages)
      if (s.name == stage) return s;
    return {};
  }
};

/// What a run's log says, in bits per token, over tokens trained on.
struct training_curves {
  std::map<int, std::vector<std::pair<double, double>>> training{}, validation{};  // by exit layer: (tokens, bits)
};

struct report_data {
  std::string title{}, subtitle{};
  std::vector<std::pair<std::string, std::string>> facts{};  // name, value
  double parameters = 0, active_parameters = 0;
  double bits = 0;  // per byte, full depth
  int layers = 0;

  std::vector<exit_judged> exits{};  // depth: see eval/depth.hpp
  long long tokens_read = 0;
  float threshold = 0.9f;
  std::string threshold_from{};  // where the threshold comes from
  threshold_judged at_threshold{};
  std::vector<long long> histogram{};
  std::vector<threshold_judged> trade_off{};
  std::vector<surprise_group> by_surprise{};
  std::vector<std::vector<confidence_bin>> reliability{};  // of every exit below the full depth

  std::vector<layer_routing> routing{};  // of MoE layers
  std::vector<expert_counts> experts{};
  std::vector<std::string> token_names{};  // by id, as a reader knows them

  std::vector<decoded_text> texts{};
  std::vector<decoder_speed> speeds{};
  std::string machine{};
  double read = 0, peak = 0;  // the machine's limits, bytes/s and FLOP/s; 0: not known

  training_curves training{};
};

}  // namespace moeskip::report
