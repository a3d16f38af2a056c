// The demo's model and how it is trained: every number that is worth turning stands here.
#pragma once

#include "moeskip/moeskip.hpp"

namespace demo {
namespace ms = moeskip;

struct variant : ms::variant {
  using router = ms::router::top_k<2>;
  using expert_dropout = ms::expert_dropout::bernoulli;
  using layer_dropout = ms::layer_dropout::exponential;
  using curriculum = ms::curriculum::rotational;
};

struct shape {
  ms::config<variant> model;
  int sequences, length;  // of a training step, tokens = bytes
  ms::training<variant> training;
  ms::decoder::early_exit<> early_exit;
  variant::decoder speculative;
};

inline constexpr ms::config<variant> full_model{
    .sizes =
        {.layers = 8, .dim = 192, .heads = 6, .kv_heads = 3, .ffn = 192, .experts = 8, .vocab = 256, .context = 256},
    .exits = ms::exits_every(2, 8),
    .expert_dropout = {.p = 0.05f},
    .layer_dropout = {.p_max = 0.1f}};
static_assert(ms::valid(full_model));

inline constexpr ms::config<variant> tiny_model{
    .sizes = {.layers = 4, .dim = 32, .heads = 4, .kv_heads = 2, .ffn = 32, .experts = 4, .vocab = 256, .context = 128},
    .exits = ms::exits_every(2, 4),
    .expert_dropout = {.p = 0.05f},
    .layer_dropout = {.p_max = 0.1f}};
static_assert(ms::valid(tiny_model));

inline shape full() {
  return {.model = full_model,
          .sequences = 4,
          .length = 256,
          .training = {.exit_scale = 1.0,
                       .curriculum = {.every = 2},
                       .schedule = {.warmup = 60},
                       .optimizer = {.lr = 3e-3}},
          .early_exit = {.rule = {.threshold = 0.9f}},
          .speculative = {}};  // chooses exit and length by what pays
}

inline shape tiny() {
  shape s = full();
  s.model = tiny_model, s.sequences = 4, s.length = 32;
  return s;
}

}  // namespace demo
