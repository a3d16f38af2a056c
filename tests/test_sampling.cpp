// Sampling: the sampler's distributions, and speculation that leaves them as they are.
// ctest: arithmetic
#include <doctest/doctest.h>

#include <cmath>
#include <numeric>

#include "chi_square.hpp"

using namespace tests;

namespace {

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

namespace {

/// Without a clock: drops, ends and goes on by confidence, leaves at either exit, watches the other.
struct restless {
  static constexpr std::string_view name = "restless";
  static constexpr bool reads_confidence = true;
  static constexpr int longest() { return 3; }
  template <class Session, class Draft> struct on {
    int rounds = 0;
    on(const restless&, Session&, Draft&) {}
    int plan(Session&, Draft& draft, int room) {
      ++rounds;
      draft.leave_at(1 + rounds % 2), draft.watch(1 + rounds / 2 % 2);
      return std::min(room, 3);
    }
    ms::verdict judge(int, double confidence) {
      return confidence < 0.45 ? ms::verdict::drop : confidence < 0.6 ? ms::verdict::last : ms::verdict::more;
    }
    void observe(const ms::speculation_round&) {}
  };
};

}  // namespace

TEST_CASE("sampled text has the full model's distribution where proposals are dropped and other exits watched") {
  const auto check = [](const auto& decoder) {
    int degrees = 0;
    const double statistic = chi_square(decoder, {.temperature = 1.f}, degrees, {3, 1}, 10000);
    CHECK(degrees > 10);
    CHECK(statistic < quantile(degrees));
  };
  check(ms::speculative_decoder::compose<ms::draft::self, ms::acceptance::exact, restless>{.draft = {1}});
  check(ms::speculative_decoder::compose<ms::draft::self, ms::acceptance::exact, ms::draft_length::confidence>{
      .draft = {1}, .length = {.threshold = 0.5}});
  check(ms::speculative_decoder::compose<>{.draft = {2}});
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
