// What depth buys: readings made by hand, and a model's against the definition.
#include <doctest/doctest.h>

#include <cmath>

#include "moeskip/eval/depth.hpp"
#include "moeskip/eval/perplexity.hpp"
#include "moeskip/eval/reliability.hpp"
#include "tiny.hpp"

using namespace tests;
using doctest::Approx;

namespace {

/// Four tokens, exits after 2, 4 and 8 layers.
ms::depth_readings by_hand() {
  ms::depth_readings r;
  r.exits = {2, 4, 8};
  r.targets = {5, 5, 6, 7};
  r.confidence = {0.95, 0.99, 1, 0.25, 0.75, 1, 0.25, 0.35, 1, 0.85, 0.95, 1};
  r.predicted = {5, 5, 5, 1, 5, 5, 1, 2, 6, 7, 3, 3};
  r.bits = {0.5, 0.25, 0.25, 4, 1, 0.5, 8, 6, 2, 0.5, 3, 4};
  return r;
}

}  // namespace

TEST_CASE("exits judged where all tokens leave at the same one") {
  const auto judged = ms::judge_exits(by_hand());
  REQUIRE(judged.size() == 3);
  CHECK(judged[0].exit_layer == 2);
  CHECK(judged[0].bits == Approx(13.0 / 4));
  CHECK(judged[0].correct == 0.5);     // tokens 0 and 3
  CHECK(judged[0].agreement == 0.25);  // token 0: the full depth is wrong about token 3
  CHECK(judged[1].agreement == 0.75);
  CHECK(judged[2].agreement == 1);
  CHECK(judged[2].correct == 0.75);
  CHECK(judged[2].bits == Approx(6.75 / 4));
}

TEST_CASE("tokens leave where confidence reaches the threshold") {
  const ms::depth_readings r = by_hand();
  CHECK(ms::exit_histogram(r, 0.7f) == std::vector<long long>{2, 1, 1});
  CHECK(ms::exit_histogram(r, 2) == std::vector<long long>{0, 0, 4});
  const ms::threshold_judged j = ms::judge_threshold(r, 0.7f);
  CHECK(j.mean_exit == Approx((2 + 4 + 8 + 2) / 4.0));
  CHECK(j.saved(8) == Approx(0.5));
  CHECK(j.bits == Approx((0.5 + 1 + 2 + 0.5) / 4));
  CHECK(j.agreement == 0.75);
}

TEST_CASE("depth by surprise") {
  const auto groups = ms::depth_by_surprise(by_hand(), 0.7f, 2);
  REQUIRE(groups.size() == 2);
  CHECK(groups[0].tokens == 2);
  CHECK(groups[0].bits == Approx(0.375));
  CHECK(groups[0].mean_exit == 3);  // tokens 0 and 1 leave after 2 and 4
  CHECK(groups[1].mean_exit == 5);
  CHECK_THROWS_AS(ms::depth_by_surprise(by_hand(), 0.7f, 5), ms::config_error);
}

TEST_CASE("reliability of confidence") {
  const auto bins = ms::reliability(by_hand(), 0, 2);
  REQUIRE(bins.size() == 2);
  CHECK(bins[0].tokens == 2);
  CHECK(bins[0].confidence == Approx(0.25));
  CHECK(bins[0].correct == 0);
  CHECK(bins[1].confidence == Approx(0.9));
  CHECK(bins[1].correct == 1);
  CHECK(bins[1].agreement == 0.5);
  CHECK(ms::calibration_error(bins) == Approx((0.25 + 0.1) / 2));
  CHECK(ms::calibration_error(bins, &ms::confidence_bin::agreement) == Approx((0.25 + 0.4) / 2));
  CHECK(ms::reliability(by_hand(), 2, 4)[3].tokens == 4);  // confidence 1 is in the last bin
}

TEST_CASE("readings of a model are those of evaluate(), exit by exit") {
  struct V : ms::variant {};
  using B = ms::reference<double>;
  ms::model<V, B> m({.sizes = tiny_sizes, .exits = ms::exits_after(1, 3)}, ms::seed{3});
  const std::vector<int> text = random_tokens(17, tiny_sizes.vocab, 9);
  const std::vector<std::vector<int>> texts{text};
  const ms::depth_readings r = ms::read_depth(m, std::span<const std::vector<int>>(texts));
  CHECK(r.tokens() == 16);
  const auto judged = ms::judge_exits(r);
  const auto expected = ms::evaluate(m, std::span<const int>(text), 16);
  REQUIRE(judged.size() == expected.size());
  for (std::size_t e = 0; e < judged.size(); ++e) {
    CHECK(judged[e].exit_layer == expected[e].exit_layer);
    CHECK(judged[e].bits == Approx(expected[e].bits_per_token));
  }
}
