// Every layer MoE: the baseline, LayerSkip's losses and dropout, expert dropout, all of it with routing locality; and as
// yardsticks a model of half the depth and a dense one of equal active size, both trained alone.
#include "study.hpp"

namespace {

using study::plan;

/// What all recipes share: the loss of the top alone, no dropout.
template <class V> plan<V> baseline(ms::sizes s = study::all_moe) {
  plan<V> p{.model = {.sizes = s, .exits = ms::exits_every(2, s.layers)}};
  p.training.exit_scale = 0;
  p.training.schedule = {.warmup = 100};
  p.training.optimizer = {.lr = 3e-3};
  return p;
}

/// Exit losses and layer dropout: LayerSkip from scratch, with constant dropout.
template <class V> plan<V> skipping() {
  plan<V> p = baseline<V>();
  p.training.exit_scale = 0.2;
  p.training.curriculum = {.every = 2};
  p.model.layer_dropout = {.p_max = 0.1f};
  return p;
}

struct plain : ms::variant {};
struct skip : ms::variant {
  using layer_dropout = ms::layer_dropout::exponential;
  using curriculum = ms::curriculum::rotational;
};
struct dropping_experts : ms::variant {
  using expert_dropout = ms::expert_dropout::bernoulli;
};
struct local : ms::variant {
  using router = ms::router::segment<ms::router::top_k<2>, 4, 1>;
};
struct everything : skip {
  using router = ms::router::segment<ms::router::top_k<2>, 4, 1>;
  using expert_dropout = ms::expert_dropout::bernoulli;
};

const study::known recipes[] = {
    {"baseline", [] { return baseline<plain>(); }},
    {"skip", [] { return skipping<skip>(); }},
    {"expert_dropout",
     [] {
       plan<dropping_experts> p = baseline<dropping_experts>();
       p.model.expert_dropout = {.p = 0.1f};
       return p;
     }},
    {"local", [] { return baseline<local>(); }},
    {"everything",
     [] {
       plan<everything> p = skipping<everything>();
       p.model.expert_dropout = {.p = 0.1f};
       return p;
     }},
    {"half_depth",
     [] {
       ms::sizes s = study::all_moe;
       s.layers /= 2;
       return baseline<plain>(s);
     }},
    {"dense",
     [] {
       ms::sizes s = study::all_moe;
       s.moe_every = 0, s.dense_ffn = 2 * s.ffn;
       return baseline<plain>(s);
     }},
};

}  // namespace
