// Exit rules: their confidences by hand, what each of them is shown while decoding, and what is refused.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "tiny.hpp"

using namespace tests;
namespace rule = ms::exit_rule;

namespace {

using evidence = ms::exit_evidence<double>;
struct small : ms::variant {};
using B = ms::cpu<float>;

constexpr ms::sizes sizes{
    .layers = 6, .dim = 24, .heads = 4, .kv_heads = 2, .ffn = 16, .experts = 4, .vocab = 11, .context = 40};
constexpr ms::config<small> shape{.sizes = sizes, .exits = ms::exits_after(1, 2, 4)};
const auto ignore = [](const ms::emitted&) {};
const std::vector<int> prompt{1, 2, 3};

ms::model<small, B> sharp() {
  ms::model<small, B> m(shape, ms::seed{5});
  for (float& w : m.block()) w *= 1.5f;
  return m;
}

ms::vec<const double> as_vec(const std::vector<double>& v) { return {v.data(), ms::index_t(v.size())}; }

/// Logits of these probabilities, shifted: softmax does not see it.
std::vector<double> logits_of(std::vector<double> p) {
  for (double& x : p) x = std::log(x) + 3;
  return p;
}

/// Confidence by hand, and that the rule leaves just below it and stays just above.
template <class Rule> void check_confidence(const evidence& seen, double want) {
  INFO(Rule::name);
  CHECK(Rule{}.confidence(seen) == doctest::Approx(want).epsilon(1e-12));
  typename Rule::state s{};
  CHECK(Rule{.threshold = float(want - 1e-5)}.template leaves<double>(seen, s));
  CHECK_FALSE(Rule{.threshold = float(want + 1e-5)}.template leaves<double>(seen, s));
}

template <class Rule> ms::generated run(const Rule& r, int tokens = 20) {
  auto m = sharp();
  return ms::generate(m, prompt, {.max_new_tokens = tokens}, ms::decoder::early_exit<Rule>{.rule = r}, ignore);
}

/// Writes down what it is shown, and leaves after layer `at`.
template <bool Logits, bool Streams> struct spy {
  static constexpr std::string_view name = "spy";
  static constexpr bool reads_logits = Logits, reads_streams = Streams;
  struct state {
    int asked = 0;
  };
  struct record {
    int exit_layer, position, step, steps, asked;
    std::vector<float> logits, stream, previous;
  };
  int at = 0;
  std::vector<record>* seen_so_far = nullptr;

  template <class T> bool leaves(const ms::exit_evidence<T>& e, state& s) const {
    const auto kept = [](ms::vec<const T> v) { return std::vector<float>(v.begin(), v.end()); };
    seen_so_far->push_back({e.exit_layer, e.position, e.step, e.steps, s.asked++, kept(e.logits), kept(e.stream),
                            kept(e.previous_stream)});
    return e.exit_layer == at;
  }
};

}  // namespace

TEST_CASE("confidences by hand") {
  const std::vector<double> logits = logits_of({0.15, 0.5, 0.05, 0.3});
  const evidence seen{.logits = as_vec(logits)};
  check_confidence<rule::max_probability>(seen, 0.5);
  check_confidence<rule::margin>(seen, 0.2);
  const double H = -(0.15 * std::log(0.15) + 0.5 * std::log(0.5) + 0.05 * std::log(0.05) + 0.3 * std::log(0.3));
  check_confidence<rule::entropy>(seen, 1 - H / std::log(4.0));

  const std::vector<double> x{3, 0, 4}, y{0, 0, 2};
  check_confidence<rule::cosine>({.stream = as_vec(x), .previous_stream = as_vec(y)}, 0.8);
}

TEST_CASE("confidences at their ends") {
  const std::vector<double> even(7, 2.5), sure{0, 2000, -INFINITY, NAN}, one{4}, x{1, 2};
  const std::vector<double> turned{-2, -4}, longer{0.3, 0.6};
  const auto of = [](const auto& r, const std::vector<double>& logits) {
    return r.confidence(evidence{.logits = as_vec(logits)});
  };
  CHECK(of(rule::max_probability{}, even) == doctest::Approx(1 / 7.0));
  CHECK(of(rule::margin{}, even) == 0);
  CHECK(std::abs(of(rule::entropy{}, even)) < 1e-12);
  const std::vector<double> certain{0, 2000, -INFINITY};
  for (const auto& logits : {certain, one}) {
    CHECK(of(rule::max_probability{}, logits) == 1);
    CHECK(of(rule::margin{}, logits) == 1);
    CHECK(of(rule::entropy{}, logits) == 1);
  }
  rule::no_state none;  // damaged logits let no token go
  CHECK_FALSE(rule::max_probability{}.leaves<double>({.logits = as_vec(sure)}, none));
  CHECK_FALSE(rule::margin{}.leaves<double>({.logits = as_vec(sure)}, none));
  CHECK_FALSE(rule::entropy{}.leaves<double>({.logits = as_vec(sure)}, none));

  CHECK(rule::cosine{}.confidence(evidence{.stream = as_vec(x), .previous_stream = as_vec(turned)}) ==
        doctest::Approx(-1));
  CHECK(rule::cosine{}.confidence(evidence{.stream = as_vec(x), .previous_stream = as_vec(longer)}) ==
        doctest::Approx(1));
  CHECK(rule::cosine{}.confidence(evidence{.stream = as_vec(x), .previous_stream = as_vec(longer)}) <= 1);
  CHECK_FALSE(rule::cosine{.threshold = 1e-9f}.leaves<double>({.stream = as_vec(x)}, none));  // the first exit
}

TEST_CASE("patience counts exits in a row that agree") {
  const auto left_after = [](int exits, const std::vector<int>& predictions) {
    rule::patience::state s{};
    for (std::size_t i = 0; i < predictions.size(); ++i) {
      std::vector<double> logits(5, 0);
      logits[std::size_t(predictions[i])] = 1;
      if (rule::patience{.exits = exits}.leaves<double>({.logits = as_vec(logits)}, s)) return int(i) + 1;
    }
    return 0;
  };
  CHECK(left_after(1, {3, 3}) == 1);
  CHECK(left_after(2, {3, 3}) == 2);
  CHECK(left_after(2, {3, 1, 3, 3}) == 4);
  CHECK(left_after(3, {0, 0, 1, 1, 1}) == 5);
  CHECK(left_after(3, {0, 0, 1, 1, 0, 0}) == 0);
}

TEST_CASE("thresholds by layer and by position") {
  rule::no_state none;
  const std::vector<double> logits = logits_of({0.6, 0.4});
  const auto leaves = [&](const auto& r, evidence seen) {
    seen.logits = as_vec(logits);
    return r.template leaves<double>(seen, none);
  };
  const rule::per_layer<rule::max_probability> by_layer{.base = {.threshold = 0.5f}, .at = {{2, 0.7f}, {4, 0.55f}}};
  CHECK(leaves(by_layer, {.exit_layer = 1}));
  CHECK_FALSE(leaves(by_layer, {.exit_layer = 2}));
  CHECK(leaves(by_layer, {.exit_layer = 4}));

  const rule::position_decay<rule::max_probability> decay{.base = {.threshold = 0.6f}, .temperature = 4};
  CHECK(decay.threshold(0, 100) == doctest::Approx(0.64));
  CHECK(decay.threshold(25, 100) == doctest::Approx(0.54 + 0.1 * 0.36787944));
  CHECK(decay.threshold(100, 100) == doctest::Approx(0.54 + 0.1 * 0.01831564));
  CHECK_FALSE(leaves(decay, {.step = 0, .steps = 100}));  // 0.64 > 0.6
  CHECK(leaves(decay, {.step = 25, .steps = 100}));
}

TEST_CASE("a rule is shown what it reads, and no more") {
  std::vector<spy<true, true>::record> all;
  run(spy<true, true>{4, &all}, 5);
  REQUIRE(all.size() == 15);  // five tokens, three exits
  for (int i = 0; i < 15; ++i) {
    const auto& r = all[std::size_t(i)];
    const int exit = i % 3, token = i / 3;
    CHECK(r.exit_layer == std::vector<int>{1, 2, 4}[std::size_t(exit)]);
    CHECK(r.asked == exit);  // a fresh state for every token
    CHECK(r.position == 2 + token);
    CHECK(r.step == token);
    CHECK(r.steps == 5);
    CHECK(r.logits.size() == 11);
    CHECK(r.stream.size() == 24);
    if (exit == 0) CHECK(r.previous.empty());
    else CHECK(r.previous == all[std::size_t(i) - 1].stream);
  }
  CHECK(all[0].stream != all[1].stream);

  std::vector<spy<false, false>::record> few;
  run(spy<false, false>{2, &few}, 5);
  REQUIRE(few.size() == 10);
  for (const auto& r : few) CHECK((r.logits.empty() && r.previous.empty() && r.stream.size() == 24));
}

/// Counts unembeddings.
struct counting : ms::session<small, B> {
  using ms::session<small, B>::session;
  int unembedded = 0;
  void logits(ms::mat<float> out, ms::mat<const float> x, int exit_layer) {
    ++unembedded;
    ms::session<small, B>::logits(out, x, exit_layer);
  }
};

TEST_CASE("what reads no logits computes none before it leaves") {
  auto m = sharp();
  const auto unembedded = [&](const auto& r) {  // by one token
    using decoder = ms::decoder::early_exit<std::decay_t<decltype(r)>>;
    counting s(m);
    s.prefill(prompt);
    ms::sampler greedy({});
    typename decoder::template on<counting> rounds(decoder{.rule = r}, s);
    rounds.round(s, greedy, 1, ignore);
    return s.unembedded;
  };
  CHECK(unembedded(rule::max_probability{.threshold = 2}) == 4);
  CHECK(unembedded(rule::patience{.exits = 1}) == 1);
  CHECK(unembedded(rule::cosine{.threshold = 2}) == 1);
  CHECK(unembedded(rule::cosine{.threshold = 1e-6f}) == 1);
  CHECK(unembedded(rule::fixed{.exit_layer = 4}) == 1);
}

TEST_CASE("rules that never fire give plain decoding, rules that always do the first exit") {
  auto m = sharp();
  const auto plain = ms::generate(m, prompt, {.max_new_tokens = 20}, ms::decoder::autoregressive{}, ignore).ids();
  const auto never = [&](const auto& r) {
    const auto out = run(r);
    CHECK(out.ids() == plain);
    CHECK(out.stats.layer_steps == 120);
  };
  never(rule::max_probability{.threshold = 1.01f}), never(rule::margin{.threshold = 1.01f});
  never(rule::entropy{.threshold = 1.01f}), never(rule::cosine{.threshold = 1.01f});
  never(rule::patience{.exits = 4}), never(rule::fixed{.exit_layer = 6});
  never(rule::per_layer<rule::margin>{.base = {.threshold = 0.1f}, .at = {{1, 2.f}, {2, 2.f}, {4, 2.f}}});
  const auto always = [&](const auto& r, int exit) {
    for (const ms::emitted& e : run(r).tokens) CHECK(e.exit_layer == exit);
  };
  always(rule::max_probability{.threshold = 1e-6f}, 1), always(rule::margin{.threshold = 1e-9f}, 1);
  always(rule::entropy{.threshold = 1e-9f}, 1), always(rule::cosine{.threshold = 1e-6f}, 2);
  always(rule::patience{.exits = 1}, 1), always(rule::fixed{.exit_layer = 2}, 2);
  always(rule::per_layer<rule::margin>{.base = {.threshold = 2.f}, .at = {{2, 1e-9f}}}, 2);
}

TEST_CASE("rules in between leave at several depths") {
  const auto mixed = [](const auto& r) {
    INFO(r.name);
    const auto out = run(r, 30);
    std::vector<int> left(7);
    for (const ms::emitted& e : out.tokens) ++left[std::size_t(e.exit_layer)];
    CHECK(std::ranges::count_if(left, [](int n) { return n > 0; }) >= 2);
  };
  mixed(rule::max_probability{.threshold = 0.4f}), mixed(rule::margin{.threshold = 0.2f});
  mixed(rule::entropy{.threshold = 0.3f}), mixed(rule::patience{.exits = 2});
  mixed(rule::position_decay<rule::max_probability>{.base = {.threshold = 0.4f}});
}

TEST_CASE("numbers of rules that mean nothing") {
  const auto refused = [](const auto& r, const char* message) {
    CHECK_THROWS_WITH_AS(run(r, 2), message, ms::config_error);
  };
  refused(rule::margin{.threshold = 0},
          "margin.threshold must be above 0 and finite (above 1: no token leaves early), got 0");
  refused(rule::entropy{.threshold = -1},
          "entropy.threshold must be above 0 and finite (above 1: no token leaves early), got -1");
  refused(rule::cosine{.threshold = INFINITY},
          "cosine.threshold must be above 0 and finite (above 1: no token leaves early), got inf");
  refused(rule::patience{.exits = 0}, "patience.exits must be at least 1, got 0");
  refused(rule::fixed{}, "fixed.exit_layer must be one of 1, 2, 4, 6, got 0");
  refused(rule::fixed{.exit_layer = 3}, "fixed.exit_layer must be one of 1, 2, 4, 6, got 3");
  refused(rule::per_layer<rule::margin>{.at = {{3, 0.5f}}}, "per_layer.at: exit_layer must be one of 1, 2, 4, got 3");
  refused(rule::per_layer<rule::margin>{.at = {{2, 0.f}}},
          "per_layer.at: exit_layer 2.threshold must be above 0 and finite (above 1: no token leaves early), got 0");
  refused(rule::per_layer<rule::margin>{.base = {.threshold = -1}},
          "margin.threshold must be above 0 and finite (above 1: no token leaves early), got -1");
  refused(rule::position_decay<rule::margin>{.base = {.threshold = 1.5f}},
          "position_decay.base.threshold must be at most 1, got 1.5");
  refused(rule::position_decay<rule::margin>{.temperature = -1},
          "position_decay.temperature must be 0 or more, and finite, got -1");
}

namespace {

std::vector<std::vector<int>> random_texts(int count, std::uint64_t seed) {
  std::vector<std::vector<int>> texts;
  for (std::uint64_t i = 0; i < std::uint64_t(count); ++i) texts.push_back(random_tokens(40, sizes.vocab, seed + i));
  return texts;
}

/// Mean log-loss of a probe on texts, and that of saying the exit's mean agreement, over the exits below the top.
struct log_losses {
  double probe = 0, constant = 0, mean_believed = 0, mean_agreed = 0;
};
log_losses judge(ms::model<small, B>& m, const rule::probe& p, const std::vector<std::vector<int>>& texts) {
  ms::arena memory;
  ms::no_tape watch(memory);
  ms::exit_readings r;
  r.exits = ms::exits_of("test", m);
  const std::size_t E = r.exits.size();
  std::vector<double> agreed(E);
  double tokens = 0;
  log_losses sum;
  for (const auto& text : texts) {
    ms::read_exits(m, p, text, r, watch);
    for (std::size_t n = 0; n < r.targets.size(); ++n, ++tokens)
      for (std::size_t e = 0; e + 1 < E; ++e) {
        const bool same = r.predicted[n * E + e] == r.predicted[n * E + E - 1];
        const double c = r.confidence[n * E + e];
        agreed[e] += same, sum.probe -= std::log(same ? c : 1 - c), sum.mean_believed += c;
      }
  }
  for (std::size_t e = 0; e + 1 < E; ++e) {
    const double a = agreed[e] / tokens;
    sum.constant -= tokens * (a * std::log(a) + (1 - a) * std::log(1 - a)), sum.mean_agreed += agreed[e];
  }
  const double all = tokens * double(E - 1);
  return {sum.probe / all, sum.constant / all, sum.mean_believed / all, sum.mean_agreed / all};
}

}  // namespace

TEST_CASE("a trained probe tells when an exit agrees with the full depth, on texts it has not seen") {
  auto m = sharp();
  const auto p = ms::fit_probe(m, random_texts(300, 1000));
  const log_losses held_out = judge(m, p, random_texts(40, 9000));
  CAPTURE(held_out.probe);
  CAPTURE(held_out.constant);
  CHECK(held_out.probe < 0.985 * held_out.constant);
  CHECK(held_out.mean_believed == doctest::Approx(held_out.mean_agreed).epsilon(0.1));
}

TEST_CASE("a probe decodes, and leaves where its confidence reaches the threshold") {
  auto m = sharp();
  auto p = ms::fit_probe(m, random_texts(30, 1000));
  const auto plain = ms::generate(m, prompt, {.max_new_tokens = 20}, ms::decoder::autoregressive{}, ignore);
  p.threshold = 2;
  CHECK(run(p).ids() == plain.ids());
  p.threshold = 0.5f;
  const auto left = run(p);
  CHECK(left.stats.layer_steps < plain.stats.layer_steps);
  p.threshold = 1e-6f;
  for (const ms::emitted& e : run(p).tokens) CHECK(e.exit_layer == 1);
  // A calibrated one keeps its weights.
  const ms::calibration c = ms::calibrate(m, random_texts(80, 5000), {.tolerance = 0.3}, p);
  CHECK(c.rule == "probe");
  CHECK(c.as(p).weights == p.weights);
  CHECK(c.as(p).threshold == c.threshold);
}

TEST_CASE("a probe by hand; one that does not fit is refused") {
  rule::probe p{.threshold = 0.5f, .dim = 2, .weights = {0, 0, 0, 3, -1, 0.5f}};
  const std::vector<double> stream{1, 7};  // rms 5
  const double score = (3 * 1 - 7) / 5.0 + 0.5;
  CHECK(p.confidence<double>({.stream = as_vec(stream), .exit_layer = 1}) ==
        doctest::Approx(1 / (1 + std::exp(-score))));
  CHECK_THROWS_AS(run(p), ms::config_error);              // of two layers and width 2
  CHECK_THROWS_AS(run(rule::probe{}), ms::config_error);  // never trained
  auto m = sharp();
  CHECK_THROWS_AS(ms::fit_probe(m, {}), ms::config_error);
  CHECK_THROWS_AS(ms::fit_probe(m, random_texts(2, 1), {.rate = 0}), ms::config_error);
  CHECK_THROWS_AS(ms::fit_probe(m, std::vector<std::vector<int>>{{1, sizes.vocab}}), ms::config_error);
}
