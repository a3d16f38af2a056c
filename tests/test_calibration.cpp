// Exit thresholds with a guarantee: p-values by hand, coverage over simulated calibrations, a model's exits against a
// token-by-token oracle, and what a checkpoint keeps.
// ctest: arithmetic
#include <doctest/doctest.h>

#include <cmath>
#include <filesystem>
#include <functional>

#include "moeskip/model/checkpoint.hpp"
#include "tiny.hpp"

using namespace tests;
namespace rule = ms::exit_rule;

namespace {

struct small : ms::variant {};
using exact = ms::reference<double>;
constexpr ms::sizes sizes{
    .layers = 4, .dim = 16, .heads = 2, .kv_heads = 1, .ffn = 12, .experts = 4, .vocab = 7, .context = 24};
constexpr ms::config<small> shape{.sizes = sizes, .exits = ms::exits_after(1, 2)};

template <class B> ms::model<small, B> sharp() {
  ms::model<small, B> m(shape, ms::seed{5});
  for (auto& w : m.block()) w *= 1.5f;
  return m;
}

std::vector<std::vector<int>> texts(int count, std::uint64_t seed) {
  std::vector<std::vector<int>> out;
  for (int i = 0; i < count; ++i) out.push_back(random_tokens(4 + i % 9, 7, seed + std::uint64_t(i)));
  return out;
}

// Simulated calibrations: candidates of known risk, and texts whose loss is 0 or 1.
constexpr int simulations = 2000, samples = 200;
constexpr double tolerance = 0.1, level = 0.1;
// Three standard deviations above `level`.
const double most_wrong = simulations * level + 3 * std::sqrt(simulations * level * (1 - level));

/// How many simulations choose a candidate whose risk is above the tolerance. choose(totals) -> how many pass. shared:
/// the texts that a candidate fails, the next one fails, too.
int wrong_choices(const std::vector<double>& risk, bool shared,
                  const std::function<int(const std::vector<double>&)>& choose) {
  int wrong = 0;
  for (int s = 0; s < simulations; ++s) {
    const ms::draws draw{{std::uint64_t(s)}, ms::stream::user};
    std::vector<double> totals(risk.size());
    for (int i = 0; i < samples; ++i)
      for (std::size_t c = 0; c < risk.size(); ++c)
        totals[c] += draw.uniform_double(std::uint64_t(i), shared ? 0 : c) < risk[c];
    const int passed = choose(totals);
    wrong += passed > 0 && risk[std::size_t(passed) - 1] > tolerance + 1e-9;
  }
  return wrong;
}

std::vector<double> p_values(const std::vector<double>& totals, int tokens_per_text = 1) {
  std::vector<double> p;
  for (const double t : totals)
    p.push_back(ms::hoeffding_bentkus_p(t * tokens_per_text, samples * tokens_per_text, tolerance));
  return p;
}
int last_within(const std::vector<double>& values, double most) {
  int last = 0;
  for (std::size_t c = 0; c < values.size(); ++c)
    if (values[c] <= most) last = int(c) + 1;
  return last;
}

}  // namespace

TEST_CASE("the binomial distribution") {
  CHECK(ms::binomial_cdf(-1, 3, 0.5) == 0);
  CHECK(ms::binomial_cdf(0, 3, 0.5) == doctest::Approx(0.125));
  CHECK(ms::binomial_cdf(1, 3, 0.5) == doctest::Approx(0.5));
  CHECK(ms::binomial_cdf(2, 3, 0.5) == doctest::Approx(0.875));
  CHECK(ms::binomial_cdf(3, 3, 0.5) == 1);
  CHECK(ms::binomial_cdf(1, 10, 0.1) == doctest::Approx(0.7360989291));
  CHECK(ms::binomial_cdf(2500, 5001, 0.5) == doctest::Approx(0.5));
}

TEST_CASE("p-values by hand") {
  // h(0.05, 0.1) = 0.05 ln 0.5 + 0.95 ln(0.95 / 0.9) = 0.0167065;   P(Bin(100, 0.1) <= 5) = 0.0575769
  CHECK(ms::hoeffding_p(5, 100, 0.1) == doctest::Approx(0.1881235).epsilon(1e-5));
  CHECK(ms::bentkus_p(5, 100, 0.1) == doctest::Approx(2.7182818 * 0.0575769).epsilon(1e-5));
  CHECK(ms::hoeffding_bentkus_p(5, 100, 0.1) == doctest::Approx(ms::bentkus_p(5, 100, 0.1)));
  // h(0.1, 0.5) = 0.1 ln 0.2 + 0.9 ln 1.8 = 0.368064;   P(Bin(10, 0.5) <= 1) = 11 / 1024
  CHECK(ms::hoeffding_p(1, 10, 0.5) == doctest::Approx(0.0252068).epsilon(1e-4));
  CHECK(ms::bentkus_p(1, 10, 0.5) == doctest::Approx(2.7182818 * 11 / 1024));
  CHECK(ms::bentkus_p(0.3, 10, 0.5) == ms::bentkus_p(1, 10, 0.5));  // rounded up
  CHECK(ms::hoeffding_bentkus_p(1, 10, 0.5) == doctest::Approx(ms::hoeffding_p(1, 10, 0.5)));
  CHECK(ms::hoeffding_bentkus_p(0, 100, 0.1) == doctest::Approx(std::pow(0.9, 100)));
  for (const double total : {10., 11., 55., 100.}) CHECK(ms::hoeffding_bentkus_p(total, 100, 0.1) == 1);
  CHECK_THROWS_WITH_AS(ms::hoeffding_bentkus_p(0, 0, 0.1), "a p-value needs at least 1 loss, got 0", ms::config_error);
  CHECK_THROWS_WITH_AS(ms::hoeffding_bentkus_p(0, 5, 1), "tolerance must be between 0 and 1, got 1", ms::config_error);
  CHECK_THROWS_WITH_AS(ms::hoeffding_bentkus_p(5.5, 5, 0.1),
                       "losses must lie in [0, 1]: expected a sum from 0 to 5, got 5.5", ms::config_error);
}

TEST_CASE("fixed-sequence testing ends at the first that fails") {
  const auto passed = [](std::vector<double> p) { return ms::fixed_sequence(p, 0.05); };
  CHECK(passed({}) == 0);
  CHECK(passed({0.06, 0.01}) == 0);
  CHECK(passed({0.05, 0.01, 0.051, 0}) == 2);
  CHECK(passed({0, 0}) == 2);
  CHECK(passed({0, NAN, 0}) == 1);
}

TEST_CASE("coverage: risks that rise along the grid") {
  std::vector<double> risk;  // 0.005, 0.010 … 0.2
  for (int c = 1; c <= 40; ++c) risk.push_back(0.005 * c);
  long long passed = 0;
  const int wrong = wrong_choices(risk, true, [&](const auto& totals) {
    const int n = ms::fixed_sequence(p_values(totals), level);
    passed += n;
    return n;
  });
  CHECK(wrong <= most_wrong);
  CHECK(double(passed) / simulations > 10);  // and it does choose: risks above 0.05 on average
  // Without the correction: the last candidate whose mean loss is within the tolerance.
  CHECK(wrong_choices(risk, true, [](const auto& totals) { return last_within(totals, tolerance * samples); }) >
        2 * most_wrong);
  // Counting the tokens of a text, which err together, as samples of their own.
  CHECK(wrong_choices(risk, true, [](const auto& totals) { return ms::fixed_sequence(p_values(totals, 10), level); }) >
        most_wrong);
}

TEST_CASE("coverage: many candidates that are a little too risky") {
  const std::vector<double> risk(30, 0.102);
  CHECK(wrong_choices(risk, false, [](const auto& totals) { return ms::fixed_sequence(p_values(totals), level); }) <=
        most_wrong);
  // Each tested by itself, and the best of those that pass taken.
  CHECK(wrong_choices(risk, false, [](const auto& totals) { return last_within(p_values(totals), level); }) >
        2 * most_wrong);
}

/// Loss and layers of texts at a threshold: token by token through a session, every layer run, the rule asked on the
/// way.
template <class Rule>
std::pair<double, double> by_hand(const std::vector<std::vector<int>>& all, const Rule& r, bool labels) {
  auto m = sharp<exact>();
  ms::session s(m);
  const auto x = s.memory().template take<double>(1, 16), logits = s.memory().template take<double>(1, 7);
  const auto before = s.memory().template take<double>(16);
  double loss = 0, layers = 0, tokens = 0;
  for (const std::vector<int>& text : all) {
    s.prefill(std::span(text.data(), 1));
    int bad = 0;
    for (int at = 0; at + 1 < int(text.size()); ++at, ++tokens) {
      int exit = 0, depth = 0, early = 0, last = 0;
      s.embed(x, text[std::size_t(at)], at);
      for (const int e : {1, 2, 4}) {
        std::copy(x.begin(), x.end(), before.begin());
        s.run(depth, e, x, at), s.logits(logits, x, e);
        last = ms::argmax<double>(logits.row(0));
        ms::exit_evidence<double> seen{.logits = logits.row(0), .stream = x.row(0), .exit_layer = e};
        if (depth > 0) seen.previous_stream = before;
        typename Rule::state state{};
        if (exit == 0 && (e == 4 || r.template leaves<double>(seen, state))) exit = e, early = last;
        depth = e;
      }
      const int target = text[std::size_t(at) + 1];
      bad += labels ? (early != target) - (last != target) : early != last;
      layers += exit;
    }
    loss += std::max(0.0, double(bad) / double(text.size() - 1));
  }
  return {loss / double(all.size()), layers / tokens};
}

TEST_CASE_TEMPLATE("a model's calibration is that of an oracle", Rule, rule::max_probability, rule::margin,
                   rule::entropy, rule::cosine) {
  auto m = sharp<exact>();
  const auto all = texts(150, 77);
  for (const auto loss : {ms::calibration_loss::consistency, ms::calibration_loss::risk}) {
    const bool labels = loss == ms::calibration_loss::risk;
    const ms::calibration_options o{.tolerance = 0.3, .confidence = 0.9, .loss = loss};
    const auto c = ms::calibrate<Rule>(m, all, o);
    INFO(Rule::name);
    CHECK(c.rule == Rule::name);
    CHECK(c.texts == 150);
    REQUIRE(c.threshold < ms::calibration::never);
    const auto [mean_loss, layers] = by_hand(all, c.template as<Rule>(), labels);
    CHECK(c.mean_loss == doctest::Approx(mean_loss));
    CHECK(c.layers_per_token == doctest::Approx(layers));
    CHECK(ms::hoeffding_bentkus_p(c.mean_loss * 150, 150, 0.3) <= 0.1);
    if (c.threshold > 0.03f) {  // the next candidate of the grid fails
      const auto next = by_hand(all, Rule{.threshold = std::round(c.threshold * 50 - 1) / 50}, labels);
      CHECK(ms::hoeffding_bentkus_p(next.first * 150, 150, 0.3) > 0.1);
    }
  }
}

TEST_CASE("nothing passes: no token leaves early") {
  auto m = sharp<ms::cpu<float>>();
  const auto all = texts(60, 5);
  const auto c = ms::calibrate(m, all, {.tolerance = 0.05, .grid = {0.1f}});
  CHECK(c.threshold == ms::calibration::never);
  CHECK(c.layers_per_token == 4);
  const std::vector<int> prompt{1, 2};
  const auto out = ms::generate(m, prompt, {.max_new_tokens = 8}, ms::decoder::early_exit<>{.rule = c.as<>()},
                                [](const ms::emitted&) {});
  CHECK(out.stats.layer_steps == 32);
}

TEST_CASE("what calibrate refuses") {
  auto m = sharp<ms::cpu<float>>();
  const auto refused = [&](const std::vector<std::vector<int>>& t, const ms::calibration_options& o,
                           const char* message) {
    CHECK_THROWS_WITH_AS(ms::calibrate(m, t, o), message, ms::config_error);
  };
  const auto all = texts(60, 5);
  refused(all, {.tolerance = 0}, "calibration_options.tolerance must be between 0 and 1, got 0");
  refused(all, {.confidence = 1}, "calibration_options.confidence must be between 0 and 1, got 1");
  refused(texts(28, 1), {},
          "calibrate: expected at least 29 texts, since fewer prove nothing at tolerance 0.1 and confidence 0.95, "
          "got 28");
  CHECK_NOTHROW(ms::calibrate(m, texts(29, 1), {}));
  refused(all, {.grid = {0.5f, 0.5f}},
          "calibration_options.grid must fall from the most cautious threshold on, got 0.5 after 0.5");
  refused(all, {.grid = {0.f}},
          "calibration_options.grid: one.threshold must be above 0 and finite (above 1: no token leaves early), got 0");
  auto bad = all;
  bad[3] = {1};
  refused(bad, {}, "calibrate: texts[3]: expected from 2 to 25 tokens, got 1");
  bad[3] = std::vector<int>(26, 1);
  refused(bad, {}, "calibrate: texts[3]: expected from 2 to 25 tokens, got 26");
  bad[3] = {1, 7};
  refused(bad, {}, "calibrate: texts[3]: token id 7 is outside the vocabulary of 7");
  ms::model<small, ms::cpu<float>> without({.sizes = sizes});
  CHECK_THROWS_WITH_AS(
      ms::calibrate(without, all),
      "calibrate: this model has no exits below its full depth of 4 layers: expected some in config.exits",
      ms::config_error);
}

TEST_CASE("a checkpoint keeps its calibration") {
  const auto file =
      std::filesystem::temp_directory_path() / ms::text("moeskip-calibration-", int(::getpid()), ".safetensors");
  auto m = sharp<ms::cpu<float>>();
  const auto all = texts(150, 77);
  const auto c = ms::calibrate<rule::margin>(m, all, {.tolerance = 0.3});
  REQUIRE(c.threshold < 1);
  ms::save(m, file, ms::to_metadata(c));
  CHECK(ms::load<small, ms::cpu<float>>(file).configuration() == m.configuration());
  const auto back = ms::calibration_from(ms::read_metadata(file), file.string());
  CHECK(back == c);
  CHECK(back.as<rule::margin>().threshold == c.threshold);
  CHECK_THROWS_WITH_AS(back.as<rule::entropy>(), "exit calibration: rule: expected entropy, got margin",
                       ms::config_error);

  ms::string_map damaged = ms::to_metadata(c);
  damaged["exit_calibration.threshold"] = "high";
  CHECK_THROWS_WITH_AS(ms::calibration_from(damaged, "x"),
                       "x: metadata: exit_calibration.threshold: expected a value, got 'high'", ms::file_error);
  CHECK_THROWS_WITH_AS(ms::save(m, file, {{"sizes.dim", "3"}}),
                       "save: about: expected keys that the config does not use, got sizes.dim", ms::config_error);
  ms::save(m, file);
  CHECK_THROWS_WITH_AS(
      ms::calibration_from(ms::read_metadata(file), "x"),
      doctest::Contains("x: no exit calibration: expected metadata exit_calibration.rule, got nothing"),
      ms::file_error);
  std::filesystem::remove(file);
}
