// Schedules of dropout over depth and over time, layer dropout by them, and what checkpoints say of them.
// ctest: arithmetic
#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "moeskip/model/metadata.hpp"
#include "tiny.hpp"

using namespace tests;

namespace {

namespace depth = ms::depth;
namespace over_time = ms::over_time;
namespace layers = ms::layer_dropout;

template <class P> struct skipping : ms::variant { using layer_dropout = P; };
template <class R> struct routed : ms::variant { using router = R; };
using from_scratch = layers::by_depth<depth::exponential, over_time::exponential>;

// Constant expressions, exact at both ends.
static_assert(depth::uniform{}.at(0, 5) == 1 && depth::uniform{}.at(4, 5) == 1);
static_assert(depth::linear{}.at(0, 5) == 0 && depth::linear{}.at(1, 5) == 0.25f && depth::linear{}.at(4, 5) == 1);
static_assert(depth::exponential{}.at(0, 5) == 0 && depth::exponential{}.at(4, 5) == 1);
static_assert(depth::custom<3>{{0.5f, 0.f, 1.f}}.at(0, 3) == 0.5f);
static_assert(over_time::constant{}.at(0) == 1 && over_time::linear{}.at(0.5) == 0.5f);
static_assert(over_time::exponential{}.at(0) == 0 && over_time::exponential{}.at(1) == 1);
static_assert(from_scratch{.p_max = 0.2f}.probability(4, 5, 1) == 0.2f);

}  // namespace

TEST_CASE("schedules: exponential is 2^x - 1 everywhere, over depth and time") {
  for (int l = 0; l < 40; ++l) {
    const double x = l / 39.0;
    CHECK(depth::exponential{}.at(l, 40) == doctest::Approx(std::exp2(x) - 1).epsilon(1e-6));
    CHECK(over_time::exponential{}.at(x) == doctest::Approx(std::exp2(x) - 1).epsilon(1e-6));
    CHECK(depth::linear{}.at(l, 40) == doctest::Approx(x).epsilon(1e-6));
  }
}

TEST_CASE("schedules: a model of one layer") {
  CHECK(depth::uniform{}.at(0, 1) == 1);
  CHECK(depth::linear{}.at(0, 1) == 0);
  CHECK(depth::exponential{}.at(0, 1) == 0);
  CHECK(depth::custom<1>{{0.25f}}.at(0, 1) == 0.25f);
}

TEST_CASE("layer dropout: depth times time, at the start, half way and at the end") {
  const from_scratch both{.p_max = 0.2f};
  const double half = std::sqrt(2.0) - 1;  // 2^(1/2) - 1
  CHECK(both.probability(8, 9, 0) == 0);
  CHECK(both.probability(8, 9, 0.5) == doctest::Approx(0.2 * half));
  CHECK(both.probability(8, 9, 1) == doctest::Approx(0.2));
  CHECK(both.probability(4, 9, 0.5) == doctest::Approx(0.2 * half * half));
  CHECK(both.probability(4, 9) == both.probability(4, 9, 1));  // the end, where nobody says
  const layers::by_depth<depth::uniform, over_time::linear> ramp{.p_max = 0.4f};
  CHECK(ramp.probability(0, 9, 0.25) == doctest::Approx(0.1));
  CHECK(layers::exponential{.p_max = 0.2f}.probability(4, 9, 0) == doctest::Approx(0.2 * half));  // constant in time
  CHECK(layers::uniform{.p_max = 0.3f}.probability(0, 9) == 0.3f);
  CHECK(layers::custom<3>{.p_max = 0.5f, .depth = {{1, 0, 0.5f}}}.probability(2, 3) == 0.25f);
}

TEST_CASE("layer dropout: names and fields tell checkpoints apart") {
  CHECK(layers::uniform::name == "uniform");
  CHECK(layers::linear::name == "linear");
  CHECK(layers::exponential::name == "exponential");
  CHECK(layers::custom<4>::name == "custom");
  CHECK(from_scratch::name == "by_depth<exponential, exponential>");
  CHECK(layers::by_depth<depth::linear, over_time::linear>::name == "by_depth<linear, linear>");

  using custom = skipping<layers::custom<4>>;
  const ms::config<custom> c{.sizes = tiny_sizes, .layer_dropout = {.p_max = 0.3f, .depth = {{0, 0.1f, 1.f / 3, 1}}}};
  const ms::string_map map = ms::to_metadata(c);
  CHECK(map.at("layer_dropout") == "custom");
  CHECK(map.at("layer_dropout.values") == "0 0.1 0.33333334 1");
  CHECK(ms::from_metadata<custom>(map, "memory") == c);

  const ms::config<skipping<from_scratch>> scratch{.sizes = tiny_sizes, .layer_dropout = {.p_max = 0.3f}};
  CHECK(ms::from_metadata<skipping<from_scratch>>(ms::to_metadata(scratch), "memory") == scratch);
  CHECK_THROWS_WITH_AS(ms::from_metadata<skipping<layers::exponential>>(ms::to_metadata(scratch), "memory"),
                       doctest::Contains("layer_dropout: expected exponential, got by_depth<exponential, exponential>"),
                       ms::file_error);
  for (const char* bad : {"", "0 0.1 0.3", "0 0.1 0.3 1 1", "0 0.1 0.3 1 ", " 0 0.1 0.3 1", "0 0.1 x 1"}) {
    ms::string_map wrong = map;
    wrong["layer_dropout.values"] = bad;
    CAPTURE(bad);
    CHECK_THROWS_WITH_AS(ms::from_metadata<custom>(wrong, "memory"),
                         doctest::Contains("layer_dropout.values: expected a value"), ms::file_error);
  }
}

TEST_CASE("layer dropout: numbers that make no sense are refused by name") {
  using custom = skipping<layers::custom<4>>;
  ms::config<custom> c{.sizes = tiny_sizes, .layer_dropout = {.p_max = 0.3f}};
  CHECK(ms::valid(c));
  for (const float bad : {-0.1f, 1.1f, std::numeric_limits<float>::quiet_NaN()}) {
    c.layer_dropout.depth.values[2] = bad;
    CHECK(ms::problem(c) == "layer_dropout.values must be in [0, 1]");
  }
  c.layer_dropout.depth.values[2] = 0.5f, c.sizes.layers = 5;
  CHECK(ms::problem(c) == "layer_dropout.values must be one for each of sizes.layers");
  ms::config<skipping<from_scratch>> s{.sizes = tiny_sizes};
  for (const float bad : {-0.1f, 1.f, std::numeric_limits<float>::quiet_NaN()}) {
    s.layer_dropout.p_max = bad;
    CHECK(ms::problem(s) == "layer_dropout.p_max must be in [0, 1)");
  }
  ms::arena memory;
  for (const double bad : {-0.1, 1.1, std::nan("")})
    CHECK_THROWS_WITH_AS((ms::tape<float>(memory, ms::seed{1}, 0, bad)), doctest::Contains("progress"),
                         ms::config_error);
}

TEST_CASE("layer dropout: the trainer's progress moves the probability") {
  using V = skipping<layers::by_depth<depth::uniform, over_time::linear>>;
  ms::sizes s = tiny_sizes;
  s.vocab = 16;
  ms::model<V, ms::cpu<float>> m({.sizes = s, .layer_dropout = {.p_max = 0.8f}}, ms::seed{1});
  for (int l = 0; l < s.layers; ++l)
    for (const double progress : {0.0, 0.5, 1.0}) {
      int stayed = 0;
      for (std::uint64_t step = 0; step < 2000; ++step) stayed += m.participates(l, 0, ms::seed{1}, step, progress);
      CHECK(stayed / 2000.0 == doctest::Approx(1 - 0.8 * progress).epsilon(0.1));
      if (progress == 0) CHECK(stayed == 2000);
    }
  ms::trainer<V, ms::cpu<float>> t(m, {.steps = 4});
  const std::vector<int> text = random_tokens(300, 16, 1);
  ms::random_windows data(text, 2, 8, ms::seed{1});
  ms::model<skipping<layers::none>, ms::cpu<float>> whole({.sizes = s}, ms::seed{1});
  ms::trainer<skipping<layers::none>, ms::cpu<float>> without(whole, {.steps = 4});
  for (const double progress : {0.0, 0.25, 0.5, 0.75, 1.0, 1.0}) {
    CHECK(t.progress() == progress);
    const bool same = t.step(data).losses.total == without.step(data).losses.total;
    if (progress == 0) CHECK(same);  // nothing is skipped yet
    if (progress == 1) CHECK(!same);
  }
}

TEST_CASE("routing locality can begin late: until then training is that of the router alone") {
  ms::sizes s = tiny_sizes;
  s.vocab = 16, s.experts = 6;
  using ms::router::segment, ms::router::segment_group, ms::router::sticky, ms::router::top_k;
  const std::vector<int> text = random_tokens(300, 16, 1);
  const auto losses = [&]<class R>(const R& router) {
    ms::model<routed<R>, ms::cpu<float>> m({.sizes = s, .router = router}, ms::seed{1});
    ms::trainer<routed<R>, ms::cpu<float>> t(m, {.steps = 4});
    ms::random_windows data(text, 2, 8, ms::seed{1});
    std::vector<double> of;
    for (int step = 0; step < 4; ++step) of.push_back(double(t.step(data).losses.total));
    return of;
  };
  const auto alone = losses(top_k<2>{});
  const auto begins_half_way = [&](const auto& late) {
    const auto of = losses(late);
    CHECK(of[0] == alone[0]);
    CHECK(of[1] == alone[1]);
    CHECK(of[2] != alone[2]);
  };
  begins_half_way(segment<top_k<2>, 4>{.from_progress = 0.5f});
  begins_half_way(segment_group<top_k<2>, 4, 3>{.from_progress = 0.5f});
  begins_half_way(sticky<top_k<2>>{.bonus = 5, .from_progress = 0.5f});

  ms::config<routed<sticky<top_k<2>>>> c{.sizes = s};
  for (const float bad : {-0.1f, 1.1f, std::numeric_limits<float>::quiet_NaN()}) {
    c.router.from_progress = bad;
    CHECK(ms::problem(c) == "router.from_progress must be in [0, 1]");
  }
}

TEST_CASE("selection biases move less and less towards the end") {
  struct biased : ms::variant {
    using router = ms::router::biased<ms::router::top_k<2>>;
  };
  const auto moved = [](float settles_from) {  // by the largest bias, in each of four steps, in units of the rate
    ms::config<biased> c{.sizes = tiny_sizes, .router = {.bias_rate = 0.25f, .settles_from = settles_from}};
    ms::model<biased, ms::cpu<float>> m(c, ms::seed{3});
    ms::trainer<biased, ms::cpu<float>> run(m, {.steps = 4});
    const std::vector<int> text = random_tokens(200, tiny_sizes.vocab, 1);
    ms::random_windows data(text, 2, 20, ms::seed{1});
    std::vector<double> steps;
    while (run.next_step() < 4) {
      const std::vector<float> before(m.block().begin(), m.block().end());
      run.step(data);
      double most = 0;
      for (const ms::tensor_info& t : m.tensors())
        for (ms::index_t i = t.offset; t.kind == ms::tensor_kind::selection_bias && i < t.offset + t.size; ++i)
          most = std::max(most, std::abs(double(m.block()[i]) - double(before[std::size_t(i)])));
      steps.push_back(most / 0.25);
    }
    return steps;
  };
  CHECK(moved(1) == std::vector<double>{1, 1, 1, 1});
  CHECK(moved(0.5f) == std::vector<double>{1, 1, 1, 0.5});
  CHECK(moved(0) == std::vector<double>{1, 0.75, 0.5, 0.25});
}
