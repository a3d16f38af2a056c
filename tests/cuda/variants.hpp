// Variants of the tests of the CUDA backend. nvcc reads this: only headers of policies.
#pragma once

#include "downstream/mine.hpp"

#include "moeskip/model/variant.hpp"
#include "moeskip/parts/exit_head/low_rank.hpp"
#include "moeskip/parts/expert_dropout/bernoulli.hpp"
#include "moeskip/parts/expert_dropout/cluster.hpp"
#include "moeskip/parts/expert_dropout/hidden.hpp"
#include "moeskip/parts/expert_dropout/output.hpp"
#include "moeskip/parts/expert_dropout/scheduled.hpp"
#include "moeskip/parts/layer_dropout/schedules.hpp"
#include "moeskip/parts/layer_skip/gate.hpp"
#include "moeskip/parts/mlp/gated_swiglu.hpp"
#include "moeskip/parts/projection/biased.hpp"
#include "moeskip/parts/projection/normed.hpp"
#include "moeskip/parts/router/biased.hpp"
#include "moeskip/parts/router/hash.hpp"
#include "moeskip/parts/router/noisy_top_k.hpp"
#include "moeskip/parts/router/segment.hpp"
#include "moeskip/parts/router/sticky.hpp"
#include "moeskip/parts/shared_expert/swiglu.hpp"

namespace tests {

namespace ms = moeskip;

using sticky_router = ms::router::sticky<ms::router::noisy_top_k<2>>;

struct everything : ms::variant {
  using router = ms::router::biased<ms::router::segment<ms::router::noisy_top_k<2>, 2, 1>>;
  using shared_expert = ms::shared_expert::gated;
  using expert_dropout = ms::expert_dropout::hidden;
  using layer_dropout = ms::layer_dropout::linear;
  using exit_head = ms::exit_head::low_rank;
  using projection = ms::projection::normed_heads;
  using layer_skip = ms::layer_skip::gate;
};
/// What a policy of expert dropout drops, and rows that layer dropout takes out.
template <class P> struct dropping : ms::variant {
  using expert_dropout = P;
  using layer_dropout = ms::layer_dropout::linear;
};
struct plain : ms::variant {
  using projection = ms::projection::biased;
};
/// Routes by vocabulary id: it has no scores.
struct hashed : ms::variant {
  using router = ms::router::hash<2>;
};
/// OLMoE's norms of queries and keys.
struct wide_norms : ms::variant {
  using projection = ms::projection::normed_width;
};
/// OpenMoE's blocks, which have no backward.
struct four_matrices : ms::variant {
  using mlp = ms::mlp::gated_swiglu;
};

}  // namespace tests
