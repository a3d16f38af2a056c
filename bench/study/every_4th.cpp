// MoE every 4th layer, the others dense: the baseline, and LayerSkip's losses and dropout with expert dropout; and a model
// small enough to draft for either.
#include "study.hpp"

namespace {

template <class V> study::plan<V> baseline(const ms::sizes& s) {
  study::plan<V> p{.model = {.sizes = s, .exits = ms::exits_every(2, s.layers)}};
  p.training.exit_scale = 0;
  p.training.schedule = {.warmup = 100};
  p.training.optimizer = {.lr = 3e-3};
  return p;
}

struct plain : ms::variant {};
struct everything : ms::variant {
  using expert_dropout = ms::expert_dropout::bernoulli;
  using layer_dropout = ms::layer_dropout::exponential;
  using curriculum = ms::curriculum::rotational;
};

const study::known recipes[] = {
    {"every_4th_baseline", [] { return baseline<plain>(study::every_4th); }},
    {"every_4th_everything",
     [] {
       study::plan<everything> p = baseline<everything>(study::every_4th);
       p.training.exit_scale = 0.2;
       p.training.curriculum = {.every = 2};
       p.model.layer_dropout = {.p_max = 0.1f};
       p.model.expert_dropout = {.p = 0.1f};
       return p;
     }},
    {"draft",
     [] {
       return baseline<plain>({.layers = 3,
                               .dim = 96,
                               .heads = 3,
                               .kv_heads = 1,
                               .ffn = 96,
                               .vocab = 256,
                               .context = 256,
                               .moe_every = 0,
                               .dense_ffn = 192});
     }},
};

}  // namespace
