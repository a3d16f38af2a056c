// moeskip train: a text in, a checkpoint out, by a recipe whose numbers can be changed. A run that was stopped goes on.
#include <cmath>
#include <filesystem>
#include <optional>

#include "../models/models.hpp"
#include "command.hpp"
#include "moeskip/eval/validation.hpp"
#include "moeskip/formats/text.hpp"
#include "moeskip/formats/tokenizer/byte.hpp"
#include "moeskip/model/checkpoint.hpp"
#include "moeskip/train/fit.hpp"

namespace tool {

namespace {

struct options {
  std::string corpus, valid, recipe = "all_moe", out, log, state, weights = "bf16";
  std::optional<int> layers, dim, heads, kv_heads, ffn, experts, context;
  float layer_dropout = 0.1f, expert_dropout = 0.1f, balance = 0.1f, stickiness = 0.7f;
  double tokens = 10e6, rate = 3e-3, exit_loss = 0.3;
  std::uint64_t steps = 0, seed = 1, validate_every = 0, checkpoint_every = 500;
  int sequences = 4, exits_every = 2, warmup = 100, threads = 0;
};

using V = models::all_moe;  // every_4th has the same policies

void set_sizes(const options& o, ms::sizes& s) {
  const auto set = [](int& number, const std::optional<int>& given) { number = given.value_or(number); };
  set(s.layers, o.layers), set(s.dim, o.dim), set(s.heads, o.heads), set(s.kv_heads, o.kv_heads), set(s.ffn, o.ffn);
  set(s.experts, o.experts), set(s.context, o.context);
}

/// The shipped models' numbers, where no others are given. One expert is shared by all, and one of the others chosen; a
/// loss at every exit; neighbours are held to the same expert.
ms::config<V> skipping(const options& o) {
  ms::sizes s{
      .layers = 12, .dim = 128, .heads = 4, .kv_heads = 2, .ffn = 128, .experts = 7, .vocab = 256, .context = 256};
  if (o.recipe == "every_4th") s.experts = 15, s.moe_every = 4, s.dense_ffn = 256;
  set_sizes(o, s);
  ms::config<V> c{.sizes = s, .exits = ms::exits_every(o.exits_every, s.layers)};
  // Renormalised, the gate of a single expert would be 1, and the router learn nothing.
  c.router.base = {.base = {.renormalise = false, .balance_loss = o.balance}, .bonus = o.stickiness};
  c.router.bias_rate = 0.01f, c.router.settles_from = 0.5f;
  c.layer_dropout = {.p_max = o.layer_dropout};
  c.expert_dropout = {.p = o.expert_dropout};
  return c;
}

void say(std::string_view line) { print(line), std::fflush(stdout); }

void show(const ms::fit_progress& now, int layers) {
  if (now.step % 100 && now.step != now.steps && now.step != 1) return;
  std::string line = ms::text("step ", now.step, "/", now.steps, "  loss");
  for (int e = 1; e <= layers; ++e)
    if (const double loss = now.report.losses.exits[std::size_t(e)]; loss > 0)
      line += ms::text("  @", e, " ", fixed(loss, 3));
  line += ms::text("  balance ", fixed(now.report.losses.balance, 2), "  ",
                   ms::grouped(ms::index_t(now.tokens_per_second)), " bytes/s");
  if (!now.validation.empty()) line += "  held out " + fixed(now.validation.back().bits_per_token, 3) + " bits/byte";
  say(line + "\n");
}

/// What the run leaves: the model, its weights rounded as asked for.
template <class B, class Trainer> void save_as(const options& o, Trainer& run) {
  ms::model<V, B> out(run.trained().configuration(), typename ms::model<V, B>::uninitialised{});
  ms::store_weights(out.backend(), out.block(), run.master());
  blaming("--out", [&] { ms::save(out, o.out); });
}

void train(const options& o, const ms::config<V>& config) {
  using B = ms::cpu<float>;
  const auto read = [](const char* option, const std::string& path) {
    return blaming(option, [&] { return ms::tokenizer::byte::encode(ms::read_text(path)); });
  };
  std::vector<int> text = read("--corpus", o.corpus), held_out;
  if (!o.valid.empty()) {
    held_out = read("--valid", o.valid);
  } else {
    held_out.assign(text.end() - std::ptrdiff_t(text.size() / 10), text.end());
    text.resize(text.size() - held_out.size());
  }
  const int length = config.sizes.context;
  MOESKIP_CHECK(ms::config_error, held_out.size() > std::size_t(length), o.valid.empty() ? "--corpus" : "--valid",
                ": is too short: expected at least ", length + 1, " bytes to validate on",
                o.valid.empty() ? " in its last tenth" : "", ", got ", held_out.size());
  auto data = blaming("--corpus", [&] { return ms::random_windows(text, o.sequences, length, ms::seed{o.seed}); });
  ms::training<V> plan{.exit_scale = o.exit_loss, .exit_weighting = ms::exit_weight_rule::uniform};
  plan.steps = o.steps ? o.steps : std::max<std::uint64_t>(1, std::uint64_t(o.tokens / data.tokens_per_batch()));
  plan.masks = {o.seed}, plan.schedule = {.warmup = o.warmup}, plan.optimizer = {.lr = o.rate};
  ms::model<V, B> m(config, ms::seed{o.seed});
  ms::trainer<V, B> run(m, plan);
  say(ms::describe(m));

  const std::string state = o.state.empty() ? o.out + ".run" : o.state;
  ms::fit_options f{.metrics = o.log.empty() ? o.out + ".jsonl" : o.log,
                    .checkpoint = state,
                    .log_every = std::max<std::uint64_t>(1, plan.steps / 1000),
                    .validate_every = o.validate_every ? o.validate_every : std::max<std::uint64_t>(1, plan.steps / 8),
                    .checkpoint_every = o.checkpoint_every,
                    .validate = ms::validation(run, held_out, length, 8, 100)};
  f.progress = [&](const ms::fit_progress& now) { show(now, m.layers()); };
  if (std::filesystem::exists(state)) say(ms::text("going on from ", state, "\n"));
  const ms::fit_result done = ms::fit(run, data, f);
  if (done.interrupted) {
    say(ms::text("stopped after step ", done.steps, "; the same command goes on from there\n"));
    return;
  }
  if (o.weights == "f32") save_as<ms::cpu<float>>(o, run);
  else save_as<ms::cpu<ms::bf16>>(o, run);
  std::string line = ms::text(o.out, ": ", ms::grouped(ms::index_t(m.block().size())), " weights; held out");
  for (const ms::exit_quality& q : done.validation)
    line += ms::text("  @", q.exit_layer, " ", fixed(q.bits_per_token, 3));
  print(line + " bits/byte\n");
}

void run(const options& o) {
  if (o.threads > 0) ms::set_thread_count(o.threads);
  MOESKIP_CHECK(ms::config_error, std::isfinite(o.tokens) && std::isfinite(o.rate),
                "--tokens and --rate: expected numbers");
  blaming("--out", [&] { ms::atomic_file attempt(o.out); });
  train(o, skipping(o));
}

void declare_shape(CLI::App& app, options& o) {
  const auto size = [&](const char* name, std::optional<int>& to, const char* what) {
    app.add_option(name, to, what)->check(within(1, 1 << 20))->type_name("N");
  };
  size("--layers", o.layers, "Layers (12)");
  size("--dim", o.dim, "Width of the residual stream (128)");
  size("--heads", o.heads, "Attention heads (4)");
  size("--kv-heads", o.kv_heads, "Heads of keys and values (2)");
  size("--ffn", o.ffn, "Width of an expert (128)");
  size("--experts", o.experts, "Experts of a layer beside the shared one (7; every_4th 15)");
  size("--context", o.context, "Bytes that the model reads, and those of a training sequence (256)");
  app.add_option("--exits-every", o.exits_every, "An exit after every so many layers (2)")
      ->check(within(1, 127))
      ->type_name("N");
}

void declare_training(CLI::App& app, options& o) {
  const auto share = [&](const char* name, auto& to, const char* what) {
    app.add_option(name, to, what)->check(within(0.0f, 100.0f))->type_name("X");
  };
  share("--exit-loss", o.exit_loss, "Weight of each exit's loss, the full depth's being 1 (0.3)");
  share("--layer-dropout", o.layer_dropout,
        "Probability that a sequence skips the last layer, earlier ones less (0.1)");
  share("--expert-dropout", o.expert_dropout, "Probability that an expert is away in a step (0.1)");
  share("--balance", o.balance, "Weight of the loss that keeps experts equally loaded (0.1)");
  share("--stickiness", o.stickiness, "By how much an expert must be better than the last token's to be chosen (0.7)");
  app.add_option("--tokens", o.tokens, "Bytes to train on (10e6)")->check(within(1.0, 1e15))->type_name("N");
  app.add_option("--steps", o.steps, "Steps instead")->check(within(1LL, 1LL << 40))->type_name("N");
  app.add_option("--sequences", o.sequences, "Sequences of a step (4)")->check(within(1, 1 << 20))->type_name("N");
  app.add_option("--rate", o.rate, "Largest learning rate (0.003)")->check(within(1e-9, 10.0))->type_name("X");
  app.add_option("--warmup", o.warmup, "Steps until it is reached (100)")->check(within(0, 1 << 30))->type_name("N");
  app.add_option("--seed", o.seed, "Weights, batches and dropout are drawn from it (1)")->type_name("N");
}

}  // namespace

action declare_train(CLI::App& app) {
  const auto o = std::make_shared<options>();
  app.add_option("--corpus", o->corpus, "A UTF-8 text to learn")->required()->type_name("FILE");
  app.add_option("--valid", o->valid, "A text to validate on (the last tenth of the corpus, which then is not learned)")
      ->type_name("FILE");
  app.add_option("--out", o->out, "The checkpoint")->required()->type_name("FILE");
  app.add_option(
         "--recipe", o->recipe,
         "all_moe: every layer a mixture of experts. every_4th: every fourth layer, with twice as many (all_moe)")
      ->check(CLI::IsMember({"all_moe", "every_4th"}).description(""))
      ->type_name("NAME");
  declare_shape(app, *o), declare_training(app, *o);
  app.add_option("--weights", o->weights, "How the checkpoint stores weights, f32 or bf16 (bf16)")
      ->check(CLI::IsMember({"f32", "bf16"}).description(""))
      ->type_name("TYPE");
  app.add_option("--log", o->log, "Metrics, for `moeskip report --log` (the checkpoint's name and .jsonl)")
      ->type_name("FILE");
  app.add_option("--state", o->state, "The run, to go on from (the checkpoint's name and .run)")->type_name("FILE");
  app.add_option("--validate-every", o->validate_every, "Steps between validations (an eighth of the run)")
      ->type_name("N");
  app.add_option("--checkpoint-every", o->checkpoint_every, "Steps after which the run is saved (500)")->type_name("N");
  app.add_option("--threads", o->threads, "Threads to use (all)")->check(within(1, 1024))->type_name("N");
  app.footer(
      wrapped("Of the experts one is shared by all tokens, one of the others chosen. Ctrl-C saves the run and stops; "
              "the same command goes on from there, bit for bit. What the model is worth then: "
              "moeskip eval, moeskip report --log. Other variants: examples/02_train.cpp; a baseline without exits and "
              "dropout: "
              "./run study baseline."));
  return [o] { run(*o); };
}

}  // namespace tool
