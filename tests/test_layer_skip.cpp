// Gates that let tokens pass layers by.
#include <doctest/doctest.h>

#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>

#include "model_gradients.hpp"
#include "moeskip/eval/counted_session.hpp"
#include "moeskip/model/checkpoint.hpp"

using namespace tests;

namespace {

struct gated : ms::variant {
  using layer_skip = ms::layer_skip::gate;
};
struct gated_and_dropped : gated {
  using expert_dropout = ms::expert_dropout::bernoulli;
  using layer_dropout = ms::layer_dropout::exponential;
  using router = ms::router::sticky<ms::router::top_k<2>>;
};
struct ungated : ms::variant {};

using R = ms::reference<double>;
const auto ignore = [](const ms::emitted&) {};

/// Layers 1 to 4 of six have gates.
template <class V = gated> ms::config<V> config_of(float logit = 0) {
  ms::config<V> c{.sizes = tiny_sizes, .exits = ms::exits_after(2, 4)};
  c.sizes.layers = 6;
  if constexpr (V::layer_skip::has_gates) c.layer_skip = {.first = 1, .open = logit};
  return c;
}

/// Weights drawn anew, large enough for opinions; those of gates too.
template <class M> void spread(M& m) {
  auto w = m.block();
  for (ms::index_t i = 0; i < w.size(); ++i) w[i] = ms::to<std::decay_t<decltype(w[i])>>(1.5f * float(w[i]));
  for (const ms::tensor_info& t : m.tensors())
    if (t.start == ms::initial::zeros)
      for (ms::index_t i = 0; i < t.size; ++i)
        w[t.offset + i] = ms::to<std::decay_t<decltype(w[i])>>(float(random_number(8, std::uint64_t(t.offset + i))));
}

/// Gives `to` the weights of the same name, layer l of `to` being layer from(l).
template <class To, class From, class Layer> void copy_weights(To& to, const From& from, Layer&& layer) {
  for (const ms::tensor_info& t : to.tensors()) {
    std::string name = t.name;
    const std::string before = "model.layers.";
    if (name.starts_with(before)) {
      const std::size_t dot = name.find('.', before.size());
      name = before + std::to_string(layer(std::stoi(name.substr(before.size())))) + name.substr(dot);
    }
    for (const ms::tensor_info& f : from.tensors())
      if (f.name == name) std::copy_n(from.block().data() + f.offset, t.size, to.block().data() + t.offset);
  }
}

/// Counts who passes.
struct watching : ms::no_tape {
  using no_tape::no_tape;
  long passed_rows = 0;
  void passed(int, const ms::token_rows& rows) { passed_rows += rows.size(); }
};

/// Streams (N, D) of a text after all layers, in calls of `at_once` rows.
template <class V, class B> std::vector<ms::scalar_t<B>> streams(ms::model<V, B>& m, const std::vector<int>& text,
                                                                 int at_once, long* passed = nullptr) {
  using T = ms::scalar_t<B>;
  const ms::sizes& s = m.sizes();
  ms::arena memory;
  watching tape(memory);
  const int N = int(text.size());
  ms::kv_cache<T> kv(m.layers(), 1, N, s.kv_groups() * s.head_size(), 0);
  const ms::token_rows rows = ms::batch_rows(1, N, memory);
  std::vector<T> out;
  for (int first = 0; first < N; first += at_once) {
    const auto scope = memory.scope();
    const int count = std::min(at_once, N - first);
    ms::mat<T> x = memory.take<T>(count, s.dim);
    m.embed(x, {text.data() + first, count});
    x = m.run_layers(0, m.layers(), x, kv, rows.rows(first, count), tape);
    out.insert(out.end(), x.begin(), x.end());
  }
  if (passed) *passed = tape.passed_rows;
  return out;
}

}  // namespace

TEST_CASE("layer skip: gradients, alone and with dropout of experts and layers") {
  CHECK(worst_error<gated>({.sizes = tiny_sizes, .layer_skip = {.first = 1, .keep = 0.4f, .pull = 3, .open = 0.3f}}) <
        1e-9);
  ms::sizes s = tiny_sizes;
  s.moe_every = 1;
  CHECK(worst_error<gated_and_dropped>({.sizes = s,
                                        .expert_dropout = {.p = 0.4f},
                                        .layer_dropout = {.p_max = 0.6f},
                                        .layer_skip = {.first = 0, .spared = 0, .temperature = 1.5f}}) < 1e-9);
}

TEST_CASE("layer skip: open gates change nothing, shut ones are a model without those layers") {
  const std::vector<int> text = random_tokens(20, tiny_sizes.vocab, 1);
  ms::model<gated, R> m(config_of(1e2f), ms::seed{1});
  ms::model<ungated, R> all(config_of<ungated>(), ms::seed{2});
  copy_weights(all, m, [](int l) { return l; });
  CHECK(streams(m, text, 20) == streams(all, text, 20));

  ms::model<gated, R> shut(config_of(-1e2f), ms::seed{1});
  ms::config<ungated> c = config_of<ungated>();
  c.sizes.layers = 2, c.sizes.moe_every = 1, c.exits = {};  // layers 0 and 5; the latter is MoE
  c.sizes.moe_every = 2;
  ms::model<ungated, R> few(c, ms::seed{2});
  copy_weights(few, shut, [](int l) { return l == 0 ? 0 : 5; });
  long passed = 0;
  CHECK(streams(shut, text, 20, &passed) == streams(few, text, 20));
  CHECK(passed == 4 * 20);
}

TEST_CASE_TEMPLATE("layer skip: a token's path does not depend on the others of its call", B, R, ms::cpu<float>) {
  const std::vector<int> text = random_tokens(30, tiny_sizes.vocab, 1);
  ms::model<gated, B> m(config_of(), ms::seed{1});
  spread(m);
  long passed = 0;
  const auto one_by_one = streams(m, text, 1, &passed);
  CHECK(passed > 20);
  CHECK(passed < 100);
  for (const int at_once : {2, 5, 15}) {
    CAPTURE(at_once);
    CHECK(streams(m, text, at_once) == one_by_one);
  }
}

TEST_CASE("layer skip: speculation and batches give the tokens of plain decoding, and fewer layers are counted") {
  using B = ms::cpu<float>;
  ms::model<gated_and_dropped, B> m(config_of<gated_and_dropped>(), ms::seed{1});
  spread(m);
  std::vector<std::vector<int>> prompts;
  for (int i = 0; i < 5; ++i) prompts.push_back(random_tokens(3 + i, tiny_sizes.vocab, 10 + std::uint64_t(i)));
  const ms::generation options{.max_new_tokens = 16};
  ms::session s(m);
  ms::batch_session together(m, 3);
  const fixed_length drafting{.draft = {.exit_layer = 2}, .length = {.num_speculations = 3}};
  const auto batch = together.generate(prompts, options, drafting);
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    CAPTURE(i);
    const auto plain = ms::generate(s, prompts[i], options, ms::decoder::autoregressive{}, ignore);
    CHECK(plain.stats.layer_steps < 6 * 16);
    CHECK(plain.stats.layer_steps >= 2 * 16);
    CHECK(ms::generate(s, prompts[i], options, drafting, ignore).ids() == plain.ids());
    CHECK(batch[i].ids() == plain.ids());
    CHECK(batch[i].stats.layer_steps == ms::generate(s, prompts[i], options, drafting, ignore).stats.layer_steps);
  }
}

TEST_CASE("layer skip: layers that were run are counted, behind a long prompt too, and their bytes") {
  using B = ms::cpu<float>;
  const std::vector<int> prompt = random_tokens(20, tiny_sizes.vocab, 1);
  const auto work = [&](float logit) {
    ms::model<gated, B> m(config_of(logit), ms::seed{1});
    ms::counted_session<gated, B> counted(m);
    const auto made =
        ms::generate(counted.session(), prompt, {.max_new_tokens = 10}, ms::decoder::autoregressive{}, ignore);
    return std::pair{made.stats.layer_steps, counted.done.total()};
  };
  const auto [shut_steps, shut] = work(-1e2f);
  const auto [open_steps, open] = work(1e2f);
  CHECK(shut_steps == 2 * 10);
  CHECK(open_steps == 6 * 10);
  CHECK(shut.weights < 0.6 * open.weights);
  CHECK(shut.products < 0.6 * open.products);
  CHECK(shut.past == doctest::Approx(open.past / 3));
}

namespace {

/// Plain decoding that learns, and in the end tells how often tokens entered each layer.
struct learning {
  static constexpr std::string_view name = "learning";
  std::vector<double>* entered;  // (L)
  template <class Session> struct on {
    ms::decoder::autoregressive::on<Session> plain;
    std::vector<double>& entered;
    on(const learning& o, Session& s) : plain({}, s), entered(*o.entered) { s.meter().learn(); }
    template <class Sink> void round(Session& s, ms::sampler& draw_from, int most, Sink&& sink) {
      plain.round(s, draw_from, most, sink);
    }
    void finish(Session& s) {
      for (int l = 0; l < s.model().layers(); ++l) entered.push_back(s.meter().enters(l));
    }
  };
};

}  // namespace

TEST_CASE("layer skip: the meter learns how often tokens enter a layer, alone, counted, and in a batch") {
  using B = ms::cpu<float>;
  ms::model<gated, B> m(config_of(), ms::seed{1});
  spread(m);
  constexpr int tokens = 25;
  const std::vector<std::vector<int>> prompts{{3}, {9}};  // of which nothing is run before the first new token
  const ms::generation options{.max_new_tokens = tokens};
  std::vector<double> alone, counted, together;
  for (const auto& prompt : prompts) {
    const std::size_t first = alone.size();
    const auto made = ms::generate(m, prompt, options, learning{&alone}, ignore);
    double steps = 0;
    for (int l = 0; l < m.layers(); ++l) {
      const double enters = alone[first + std::size_t(l)];
      if (m.configuration().has_gate(l)) steps += enters * (tokens + 1) - 1;  // one observation is assumed
      else CHECK(enters == 1);
      if (!m.configuration().has_gate(l)) steps += tokens;
    }
    CHECK(steps == doctest::Approx(double(made.stats.layer_steps)));
    CHECK(made.stats.layer_steps < 6 * tokens);
    ms::counted_session<gated, B> with(m);
    ms::generate(with.session(), prompt, options, learning{&counted}, ignore);
  }
  CHECK(counted == alone);
  ms::batch_session batch(m, 2);
  batch.generate(prompts, options, learning{&together});
  CHECK(together == alone);
}

TEST_CASE("layer skip: what rounds cost where half of the tokens enter, computed by hand") {
  // D 4, two heads and one group of 2, F 3, E 4, V 5. A layer: gate 8, norms 8, projections 48 (of keys and values,
  // with the norm, 20), and its experts or its dense part.
  ms::config<gated> c{.sizes = {.layers = 3, .dim = 4, .heads = 2, .kv_heads = 1, .ffn = 3, .experts = 4, .vocab = 5}};
  c.layer_skip = {.first = 1, .spared = 1};
  const auto check = [&](double one, double two, bool seen) {
    ms::arena memory;
    ms::routing_meter meter(memory, c.sizes, 2, 1);
    meter.learn();
    const std::vector<int> slot(3), position{0, 1, 2};
    const ms::token_rows three{{slot.data(), 3}, {position.data(), 3}};
    if (seen)
      meter.entered(1, three.rows(0, 1)), meter.passed(1, three.rows(1, 2));  // and one that is assumed to enter
    CHECK(meter.enters(1) == doctest::Approx(seen ? 0.5 : 1));
    ms::draft_length::round_costs costs;
    costs.describe(c, meter);
    costs.observe({.verify_seconds = one}, 0);  // a plain step at a second a weight
    CHECK(costs.plain() == doctest::Approx(one));
    CHECK(costs.verify_one_more(0, 2) == doctest::Approx(two - one));
  };
  // Layers 0 and 2 are dense, of 92, the head has 24. The middle one has 100, which two tokens read in three of four
  // cases.
  c.sizes.moe_every = 0;
  check(208 + 100, 208 + 100, false);
  check(208 + 100 / 2. + 28 / 2., 208 + 100 * 3 / 4. + 28 / 4., true);
  // It has experts of 36: 152 with those of one token, which are two, and 188 with those of two tokens: three.
  c.sizes.moe_every = 2;
  check(208 + 152, 208 + 188, false);
  check(208 + 152 / 2. + 28 / 2., 208 + 152 / 2. + 188 / 4. + 28 / 4., true);
}

TEST_CASE("layer skip: early exits run fewer layers still, and those that never leave write plain decoding's text") {
  using B = ms::cpu<float>;
  ms::model<gated, B> m(config_of(), ms::seed{1});
  spread(m);
  const std::vector<int> prompt = random_tokens(5, tiny_sizes.vocab, 1);
  ms::session s(m);
  const auto with = [&](auto decoder) { return ms::generate(s, prompt, {.max_new_tokens = 20}, decoder, ignore); };
  const auto plain = with(ms::decoder::autoregressive{});
  using rule = ms::exit_rule::max_probability;
  const auto never = with(ms::decoder::early_exit<rule, ms::missing_kv::propagate>{.rule = {.threshold = 2}});
  CHECK(never.ids() == plain.ids());
  CHECK(never.stats.layer_steps == plain.stats.layer_steps);
  const auto at_once = with(ms::decoder::early_exit<rule, ms::missing_kv::propagate>{.rule = {.threshold = 1e-6f}});
  CHECK(at_once.stats.layer_steps < plain.stats.layer_steps);
  const auto later = with(ms::decoder::early_exit<rule, ms::missing_kv::recompute>{.rule = {.threshold = 1e-6f}});
  CHECK(later.tokens.front().token == at_once.tokens.front().token);
  CHECK(later.stats.layer_steps > at_once.stats.layer_steps);
}

TEST_CASE("layer skip: training draws the gates to the share that is wanted") {
  const std::vector<int> text = random_tokens(400, tiny_sizes.vocab, 1);
  for (const float keep : {0.3f, 0.8f}) {
    CAPTURE(keep);
    ms::config<gated> c = config_of();
    c.layer_skip.keep = keep, c.layer_skip.pull = 5;
    ms::model<gated, ms::cpu<float>> m(c, ms::seed{1});
    ms::trainer<gated, ms::cpu<float>> trainer(m, {.optimizer = {.lr = 1e-2}});
    ms::random_windows data(text, 4, 20, ms::seed{1});
    float open = 0;
    for (int step = 0; step < 60; ++step) open = trainer.step(data).losses.open_gates;
    CHECK(std::abs(open - keep) < 0.1f);
  }
}

TEST_CASE("layer skip: memory is predicted, files keep the gates, and numbers that make no sense are refused") {
  ms::config<gated> c = config_of();
  c.sizes.dim = 96, c.sizes.context = 128;
  ms::model<gated, ms::cpu<float>> m(c, ms::seed{1});
  const std::vector<int> text = random_tokens(2000, c.sizes.vocab, 1);
  ms::trainer<gated, ms::cpu<float>> trainer(m, {});
  ms::random_windows data(text, 4, 128, ms::seed{1});
  const double predicted = double(ms::training_activations(trainer, 4, 128).peak());
  trainer.step(data);
  CHECK(double(trainer.memory().high_water()) == doctest::Approx(predicted).epsilon(0.02));

  const std::string file =
      (std::filesystem::temp_directory_path() / ms::text("moeskip-layer-skip-", ::getpid(), ".safetensors")).string();
  ms::save(m, file);
  CHECK(ms::read_metadata(file).at("layer_skip") == "gate");
  const auto again = ms::load<gated, ms::cpu<float>>(file);
  CHECK(std::memcmp(again.block().data(), m.block().data(), std::size_t(m.block().size()) * sizeof(float)) == 0);
  CHECK_THROWS_WITH_AS((ms::load<ungated, ms::cpu<float>>(file)), doctest::Contains("layer_skip"), ms::error);
  std::remove(file.c_str());

  c.layer_skip.keep = 0;
  CHECK_THROWS_WITH_AS((ms::model<gated, R>(c)), "config: layer_skip.keep must be above 0 and at most 1",
                       ms::config_error);
}
