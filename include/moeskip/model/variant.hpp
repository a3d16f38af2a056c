// The default of every slot. A user's variant derives from this and names only what differs.
#pragma once

#include "moeskip/concepts/variant.hpp"
#include "moeskip/fwd.hpp"
#include "moeskip/parts/after_moe.hpp"
#include "moeskip/parts/exit_head/shared.hpp"
#include "moeskip/parts/expert_dropout/none.hpp"
#include "moeskip/parts/layer_dropout/none.hpp"
#include "moeskip/parts/layer_skip/none.hpp"
#include "moeskip/parts/mlp/swiglu.hpp"
#include "moeskip/parts/projection/plain.hpp"
#include "moeskip/parts/router/top_k.hpp"
#include "moeskip/parts/shared_expert/none.hpp"

namespace moeskip {

struct variant {
  using projection = moeskip::projection::plain;  // what becomes of queries, keys and values before attention
  using router = moeskip::router::top_k<2>;
  using shared_expert = moeskip::shared_expert::none;  // an expert that every token visits, beside the chosen ones
  using mlp = moeskip::mlp::swiglu;                    // what dense blocks and experts compute
  using after_moe = moeskip::after_moe::nothing;       // one more block behind the experts
  using expert_dropout = moeskip::expert_dropout::none;
  using layer_dropout = moeskip::layer_dropout::none;
  using layer_skip = moeskip::layer_skip::none;  // which tokens pass a layer by
  using exit_head = moeskip::exit_head::shared;
  using curriculum = moeskip::curriculum::all;              // which exits learn in a step
  using decoder = moeskip::speculative_decoder::compose<>;  // used by generate() unless it is told otherwise
};

}  // namespace moeskip
