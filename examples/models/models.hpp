// The variants of the trained models in this folder; `./run study` trains them (bench/study/). All speak bytes.
#pragma once

#include "moeskip/moeskip.hpp"

namespace models {

/// Every layer MoE.
struct all_moe : moeskip::variant {
  using layer_dropout = moeskip::layer_dropout::exponential;
  using curriculum = moeskip::curriculum::rotational;
};

/// MoE every 4th layer, the others dense.
struct every_4th : moeskip::variant {
  using expert_dropout = moeskip::expert_dropout::bernoulli;
  using layer_dropout = moeskip::layer_dropout::exponential;
  using curriculum = moeskip::curriculum::rotational;
};

/// A small dense one, to draft for either.
struct draft : moeskip::variant {};

}  // namespace models
