// A study: one model trained by one recipe, and what it is worth. Recipes register themselves by name (all_moe.cpp,
// every_4th.cpp, locality.cpp); main.cpp runs those that are asked for. Each leaves
//   NAME-SEED.jsonl        metrics of the run, line by line
//   NAME-SEED.run          the run's state: an interrupted study goes on from it
//   NAME-SEED.safetensors  the model, weights in bf16
//   NAME-SEED.json         what was measured (results.hpp)
#pragma once

#include <filesystem>
#include <functional>
#include <iostream>
#include <map>
#include <string>
#include <vector>

#include "moeskip/eval/validation.hpp"
#include "moeskip/model/checkpoint.hpp"
#include "moeskip/moeskip.hpp"
#include "moeskip/train/fit.hpp"
#include "results.hpp"

namespace study {

/// What all studies share.
struct options {
  std::vector<int> train, valid, other;  // texts; other: out of domain, may be empty
  std::filesystem::path out = "study";
  double tokens = 10e6;  // to train on
  std::uint64_t seed = 1;
  bool tiny = false;  // smallest sizes, a few steps: to see that everything runs
};

using recipe = std::function<void(const std::string& name, const options&)>;

inline std::map<std::string, recipe>& recipes() {
  static std::map<std::string, recipe> all;
  return all;
}

inline constexpr int sequences = 4, length = 256;  // of a training step

/// 12 layers, dim 128, 16 experts top-2 of width 128: 10 M weights, 2 M of them active for a token.
inline constexpr ms::sizes all_moe{
    .layers = 12, .dim = 128, .heads = 4, .kv_heads = 2, .ffn = 128, .experts = 16, .vocab = 256, .context = 256};
/// MoE every 4th layer, with 32 experts; the dense ones are as wide as two experts.
inline constexpr ms::sizes every_4th{.layers = 12,
                                     .dim = 128,
                                     .heads = 4,
                                     .kv_heads = 2,
                                     .ffn = 128,
                                     .experts = 32,
                                     .vocab = 256,
                                     .context = 256,
                                     .moe_every = 4,
                                     .dense_ffn = 256};

template <class V> struct plan {
  ms::config<V> model;
  ms::training<V> training{};
};

/// The router inside a nest of wrappers.
template <class R> auto& innermost(R& router) {
  if constexpr (requires { router.base; }) return innermost(router.base);
  else return router;
}

/// What all recipes share: the loss of the top alone, no dropout. The balance loss is a mean over layers: 0.1 of it is
/// what Switch's 0.01 of the sum is to twelve layers.
template <class V> plan<V> baseline(const ms::sizes& s) {
  plan<V> p{.model = {.sizes = s, .exits = ms::exits_every(2, s.layers)}};
  innermost(p.model.router).balance_loss = 0.1f;
  p.training.exit_scale = 0;
  p.training.schedule = {.warmup = 100};
  p.training.optimizer = {.lr = 3e-3};
  return p;
}

/// Exit losses and layer dropout. All exits learn in each step, all alike, since with bytes for a vocabulary their
/// heads cost little; LayerSkip's own weights leave next to nothing to the lowest ones, which drafts leave at.
template <class V> plan<V> skipping(const ms::sizes& s) {
  plan<V> p = baseline<V>(s);
  p.training.exit_weighting = ms::exit_weight_rule::uniform;
  p.training.exit_scale = 0.3;
  p.model.layer_dropout = {.p_max = 0.1f};
  return p;
}

/// All of it: one expert fewer, of as many weights as the shared one has.
template <class V> plan<V> everything(ms::sizes s) {
  --s.experts;
  plan<V> p = skipping<V>(s);
  innermost(p.model.router).renormalise = false;  // a single expert's gate of 1 would teach the router nothing
  p.model.expert_dropout = {.p = 0.1f};
  return p;
}

/// The same with neighbours that share experts.
template <class V> plan<V> everything_local(const ms::sizes& s) {
  plan<V> p = everything<V>(s);
  p.model.router.bias_rate = 0.01f, p.model.router.settles_from = 0.5f;
  p.model.router.base.bonus = 0.7f;
  return p;
}

/// Fewer layers, experts and steps.
template <class V> void shrink(plan<V>& p) {
  p.model.sizes.layers = std::min(p.model.sizes.layers, 4), p.model.sizes.dim = 16, p.model.sizes.heads = 2;
  p.model.sizes.kv_heads = 1, p.model.sizes.ffn = 8, p.model.sizes.context = 32;
  if (p.model.sizes.dense_ffn) p.model.sizes.dense_ffn = 16;
  p.model.exits = ms::exits_every(2, p.model.sizes.layers);
}

template <class V> void run(const std::string& name, const options& o, plan<V> p) {
  using B = ms::cpu<float, ms::isa::native, ms::bf16>;
  if (o.tiny) shrink(p);
  const int long_as = o.tiny ? 32 : length;
  p.training.steps = o.tiny ? 3 : std::max<std::uint64_t>(1, std::uint64_t(o.tokens / (sequences * length)));
  p.training.masks = {o.seed};
  const auto file = [&](const char* ending) { return o.out / ms::text(name, "-", o.seed, ending); };
  std::filesystem::create_directories(o.out);
  ms::model<V, B> model(p.model, ms::seed{o.seed});
  ms::trainer<V, B> trainer(model, p.training);
  ms::random_windows data(o.train, sequences, long_as, ms::seed{o.seed});
  std::cout << name << ", seed " << o.seed << "\n" << ms::describe(model);

  ms::fit_options f{.metrics = file(".jsonl"),
                    .checkpoint = file(".run"),
                    .log_every = 100,
                    .validate_every = std::max<std::uint64_t>(1, p.training.steps / 8),
                    .checkpoint_every = 500,
                    .validate = ms::validation(trainer, o.valid, long_as, 8, 100)};
  f.progress = [&](const ms::fit_progress& now) {
    if (now.step % 500 && now.step != now.steps) return;
    std::cout << "  step " << now.step << "/" << now.steps << "  loss "
              << now.report.losses.exits[std::size_t(model.layers())] << "  balance " << now.report.losses.balance
              << "  " << int(now.tokens_per_second) << " tokens/s" << std::endl;
  };
  const ms::fit_result done = ms::fit(trainer, data, f);
  if (done.interrupted) throw ms::error("stopped; the same command goes on from there");
  const results r = measure(trainer, o.valid, o.other, long_as, done);
  ms::model<V, ms::cpu<ms::bf16>> small(model.configuration(),
                                        typename ms::model<V, ms::cpu<ms::bf16>>::uninitialised{});
  ms::store_weights(small.backend(), small.block(), trainer.master());
  ms::save(small, file(".safetensors"));
  write(r, name, o.seed, model, file(".json"));
  print(std::cout, r);
}

/// Makes a recipe known: `static const study::known baseline("baseline", [] { return plan<V>{…}; });`
struct known {
  template <class Make> known(const char* name, Make make) {
    recipes()[name] = [make](const std::string& n, const options& o) { run(n, o, make()); };
  }
};

}  // namespace study
