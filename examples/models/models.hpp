// The variants of the trained models in this folder; `./run study` trains them (bench/study/). All speak bytes.
#pragma once

#include "moeskip/moeskip.hpp"

namespace models {

/// Half of what a token visits is one expert that all share, and the other half is left only for an expert that is
/// better by a margin: so a verify's union of experts grows slowly. Balanced by selection biases.
struct local : moeskip::variant {
  using router = moeskip::router::biased<moeskip::router::sticky<moeskip::router::top_k<1>>>;
  using shared_expert = moeskip::shared_expert::always;
  using expert_dropout = moeskip::expert_dropout::bernoulli;
  using layer_dropout = moeskip::layer_dropout::exponential;
};

/// Every layer MoE.
struct all_moe : local {};

/// MoE every 4th layer, the others dense.
struct every_4th : local {};

/// What all_moe is compared with: default policies, top-2 of as many experts as all_moe has with its shared one,
/// nothing dropped, no exits.
struct all_moe_baseline : moeskip::variant {};

/// A small dense one, to draft for either.
struct draft : moeskip::variant {};

}  // namespace models
