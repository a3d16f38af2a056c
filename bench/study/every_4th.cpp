// MoE every 4th layer, the others dense: the baseline, and LayerSkip's losses and dropout with expert dropout; and a model
// small enough to draft for either.
#include "study.hpp"

namespace {

struct plain : ms::variant {};
struct everything : ms::variant {
  using expert_dropout = ms::expert_dropout::bernoulli;
  using layer_dropout = ms::layer_dropout::exponential;
};

const study::known recipes[] = {
    {"every_4th_baseline", [] { return study::baseline<plain>(study::every_4th); }},
    {"every_4th_everything",
     [] {
       study::plan<everything> p = study::skipping<everything>(study::every_4th);
       p.model.expert_dropout = {.p = 0.1f};
       return p;
     }},
    {"draft",
     [] {
       return study::baseline<plain>({.layers = 3,
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
