// Sampling: the sampler's distributions, and speculation that leaves them as they are. The chi-square
// statistic of observed pairs of tokens against their exact probabilities must stay below its 99.9 %
// quantile; a decoder that accepts everything must exceed it by far.
#include <doctest/doctest.h>

#include <cmath>
#include <numeric>

#include "tiny.hpp"

using namespace tests;

namespace {

struct small : ms::variant {};
using backend = ms::cpu<float>;
using model = ms::model<small, backend>;

constexpr int vocab = 5;
constexpr ms::config<small> shape{
    .sizes = {.layers = 4, .dim = 24, .heads = 3, .ffn = 16, .experts = 4, .vocab = vocab, .context = 16},
    .exits = ms::exits_after(1, 2)};

/// Accepts every drafted token: fast, and wrong.
struct always {
  static constexpr std::string_view name = "always";
  template <class T> bool accepts(ms::vec<const T>, ms::vec<const T>, int, double) const { return true; }
  template <class T> void residual(ms::vec<T> out, ms::vec<const T> p, ms::vec<const T>) const {
    std::copy(p.begin(), p.end(), out.begin());
  }
};

/// Sharper than freshly drawn weights, so that the draft and the full model disagree.
void sharpen(model& m) {
  for (float& w : m.block()) w *= 1.6f;
}

/// The full model's distribution of the next token after `tokens`.
std::vector<float> next_distribution(ms::session<small, backend>& s, ms::sampler& sampler,
                                     const std::vector<int>& tokens) {
  s.prefill(tokens);
  const auto scope = s.memory().scope();
  ms::mat<float> x = s.memory().take<float>(1, shape.sizes.dim), logits = s.memory().take<float>(1, vocab);
  s.embed(x);
  s.run(0, shape.sizes.layers, x, s.position());
  s.logits(logits, x, shape.sizes.layers);
  std::vector<float> p(vocab);
  sampler.distribution<float>({p.data(), vocab}, logits.row(0));
  return p;
}

/// Chi-square of three generated tokens' joint counts against the exact joint probabilities; `degrees`: of
/// freedom.
template <class Decoder> double chi_square(const Decoder& decoder, ms::sampling options, int& degrees) {
  model m(shape, ms::seed{11});
  sharpen(m);
  const std::vector<int> prompt{3, 1};
  constexpr int outcomes = vocab * vocab * vocab, draws = 40000;
  std::vector<double> expected(outcomes), observed(outcomes);
  ms::session<small, backend> s(m);
  ms::sampler sampler(options);
  for (int a = 0; a < vocab; ++a)
    for (int b = 0; b < vocab; ++b) {
      const float pa = next_distribution(s, sampler, {3, 1})[std::size_t(a)];
      const float pb = next_distribution(s, sampler, {3, 1, a})[std::size_t(b)];
      const auto pc = next_distribution(s, sampler, {3, 1, a, b});
      for (int c = 0; c < vocab; ++c)
        expected[std::size_t((a * vocab + b) * vocab + c)] =
            double(pa) * double(pb) * double(pc[std::size_t(c)]) * draws;
    }
  for (int i = 0; i < draws; ++i) {
    options.seed = {std::uint64_t(i)};
    const auto ids =
        ms::generate(s, prompt, {.max_new_tokens = 3, .sampling = options}, decoder, [](const ms::emitted&) {}).ids();
    ++observed[std::size_t((ids[0] * vocab + ids[1]) * vocab + ids[2])];
  }
  // Rare outcomes are counted together, as the test demands; an impossible one settles it.
  double statistic = 0, rare_expected = 0, rare_observed = 0;
  bool impossible = false;
  degrees = -1;
  for (int i = 0; i < outcomes; ++i) {
    const double e = expected[std::size_t(i)], o = observed[std::size_t(i)];
    if (e < 1e-9 && o > 0) impossible = true;
    if (e < 8) {
      rare_expected += e, rare_observed += o;
      continue;
    }
    statistic += (o - e) * (o - e) / e, ++degrees;
  }
  if (rare_expected >= 8) statistic += std::pow(rare_observed - rare_expected, 2) / rare_expected, ++degrees;
  return impossible ? INFINITY : statistic;
}

/// 99.9 % quantile of chi-square, by Wilson and Hilferty's cube.
double quantile(int degrees) {
  const double k = degrees, z = 3.0902;
  return k * std::pow(1 - 2 / (9 * k) + z * std::sqrt(2 / (9 * k)), 3);
}

template <class Acceptance> using speculative =
    ms::speculative_decoder::compose<ms::draft::self, Acceptance, ms::draft_length::fixed>;

const ms::sampling warm{.temperature = 1.f};
const ms::sampling cut{.temperature = 0.8f, .top_k = 4, .top_p = 0.9f};

}  // namespace

TEST_CASE("plain sampling follows the model's distribution") {
  int degrees = 0;
  const double statistic = chi_square(ms::decoder::autoregressive{}, warm, degrees);
  CHECK(degrees > 20);
  CHECK(statistic < quantile(degrees));
}

TEST_CASE("sampled self-speculation has the same distribution; accepting everything has not") {
  for (const ms::sampling& options : {warm, cut}) {
    int degrees = 0;
    const double exact =
        chi_square(speculative<ms::acceptance::exact>{.draft = {.exit_layer = 1}, .length = {.num_speculations = 3}},
                   options, degrees);
    CAPTURE(degrees);
    CHECK(exact < quantile(degrees));
    const double wrong = chi_square(speculative<always>{.draft = {.exit_layer = 1}, .length = {.num_speculations = 3}},
                                    options, degrees);
    CHECK(wrong > 10 * quantile(degrees));
  }
}

TEST_CASE("the sampler's distributions") {
  const std::vector<float> logits{1.f, 3.f, 2.f, 3.f, -1.f};
  std::vector<float> p(5);
  const auto distribution = [&](ms::sampling options) {
    ms::sampler s(options);
    s.distribution<float>({p.data(), 5}, {logits.data(), 5});
    return p;
  };
  CHECK(distribution({}) == std::vector<float>{0, 1, 0, 0, 0});  // greedy: the lowest id among equals
  double total = 0;
  for (int i = 0; i < 5; ++i) total += std::exp(double(logits[std::size_t(i)]) / 0.5);
  distribution({.temperature = 0.5f});
  for (std::size_t i = 0; i < 5; ++i) CHECK(p[i] == doctest::Approx(std::exp(double(logits[i]) / 0.5) / total));
  distribution({.temperature = 1.f, .top_k = 3});
  CHECK(p[0] == 0);
  CHECK(p[4] == 0);
  CHECK(std::accumulate(p.begin(), p.end(), 0.0) == doctest::Approx(1));
  distribution({.temperature = 1.f, .top_p = 0.5f});  // 3.f twice: 0.40 each, so two of them
  CHECK(p[1] == doctest::Approx(0.5));
  CHECK(p[3] == doctest::Approx(0.5));
  CHECK(ms::sampler::pick<float>({p.data(), 5}, 0.49) == 1);
  CHECK(ms::sampler::pick<float>({p.data(), 5}, 0.51) == 3);
  CHECK(ms::sampler::pick<float>({p.data(), 5}, 0.9999999) == 3);
}

TEST_CASE("logits that are not numbers are refused, options that mean nothing too") {
  std::vector<float> p(2), nan{std::nanf(""), std::nanf("")};
  ms::sampler s{ms::sampling{}};
  CHECK_THROWS_WITH_AS((s.distribution<float>({p.data(), 2}, {nan.data(), 2})),
                       doctest::Contains("logits are not finite: weights are damaged or diverged"), ms::config_error);
  CHECK_THROWS_WITH_AS(ms::sampler(ms::sampling{.temperature = -1.f}),
                       doctest::Contains("temperature must be 0 (greedy) or more, got -1"), ms::config_error);
  CHECK_THROWS_WITH_AS(ms::sampler(ms::sampling{.top_p = 0.f}), doctest::Contains("top_p must be in (0, 1], got 0"),
                       ms::config_error);
  CHECK_THROWS_WITH_AS(ms::sampler(ms::sampling{.top_k = -2}),
                       doctest::Contains("top_k must be 0 (no limit) or more, got -2"), ms::config_error);
}

TEST_CASE("infinite logits are refused by every way of sampling; minus infinity beside a finite one is not") {
  const float inf = INFINITY;
  for (const ms::sampling& options :
       {ms::sampling{}, ms::sampling{.temperature = 1.f}, ms::sampling{.temperature = 1.f, .top_k = 40},
        ms::sampling{.temperature = 1.f, .top_p = 0.9f},
        ms::sampling{.temperature = 0.7f, .top_k = 40, .top_p = 0.9f}}) {
    std::vector<float> p(400), logits(400, 0.5f);
    ms::sampler s(options);
    const auto distribution = [&] { s.distribution<float>({p.data(), 400}, {logits.data(), 400}); };
    for (std::size_t i = 7; i < 400; i += 3) logits[i] = -inf;
    CHECK_NOTHROW(distribution());
    CHECK(p[7] == 0);
    CHECK(std::accumulate(p.begin(), p.end(), 0.0) == doctest::Approx(1));
    logits[200] = inf;
    CHECK_THROWS_WITH_AS(distribution(), "logits are not finite: weights are damaged or diverged", ms::config_error);
    logits.assign(400, -inf);
    CHECK_THROWS_WITH_AS(distribution(), "logits are not finite: weights are damaged or diverged", ms::config_error);
  }
}

TEST_CASE("top_p keeps no token beyond the one that reaches its mass exactly") {
  const std::vector<float> equal(4, 0.5f);  // a quarter of the mass each, without rounding
  const auto kept = [&](ms::sampling options) {
    std::vector<float> p(4);
    ms::sampler(options).distribution<float>({p.data(), 4}, {equal.data(), 4});
    return p;
  };
  using list = std::vector<float>;
  CHECK(kept({.temperature = 1.f, .top_p = 0.25f}) == list{1, 0, 0, 0});
  CHECK(kept({.temperature = 1.f, .top_p = 0.5f}) == list{0.5f, 0.5f, 0, 0});
  CHECK(kept({.temperature = 1.f, .top_p = std::nextafter(0.5f, 1.f)}) == list{1 / 3.f, 1 / 3.f, 1 / 3.f, 0});
  CHECK(kept({.temperature = 1.f, .top_p = std::nextafter(0.5f, 0.f)}) == list{0.5f, 0.5f, 0, 0});
  CHECK(kept({.temperature = 1.f, .top_p = 1e-9f}) == list{1, 0, 0, 0});  // never none
  // top_k cuts first: the mass is that of the two which it leaves.
  CHECK(kept({.temperature = 1.f, .top_k = 2, .top_p = 0.5f}) == list{1, 0, 0, 0});
}
