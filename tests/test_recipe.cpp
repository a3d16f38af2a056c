// What a training recipe is made of: weights of the exits, curricula, schedules.
// ctest: arithmetic
#include <doctest/doctest.h>

#include <cmath>

#include "tiny.hpp"

using namespace tests;

TEST_CASE("exit weights: every rule, with and without e_scale") {
  const ms::layer_set exits = ms::exits_after(1, 3);
  const auto check = [&](ms::exit_weight_rule rule, double w1, double w3, double top) {
    CAPTURE(ms::name_of(rule));
    for (const double e_scale : {1.0, 0.25}) {
      const ms::exit_weights w = ms::loss_weights(rule, exits, 4, e_scale);
      const double sum = e_scale * (w1 + w3) + top;
      CHECK(w[1] == doctest::Approx(e_scale * w1 / sum).epsilon(1e-14));
      CHECK(w[2] == 0);
      CHECK(w[3] == doctest::Approx(e_scale * w3 / sum).epsilon(1e-14));
      CHECK(w[4] == doctest::Approx(top / sum).epsilon(1e-14));
    }
    CHECK(ms::loss_weights(rule, exits, 4, 0)[4] == 1);
    CHECK(ms::loss_weights(rule, {}, 1, 0.3)[1] == 1);
  };
  check(ms::exit_weight_rule::uniform, 1, 1, 1);
  check(ms::exit_weight_rule::proportional, 1, 3, 4);
  check(ms::exit_weight_rule::square_root, 1, std::sqrt(3.0), 2);
  check(ms::exit_weight_rule::inverse, 1, 1.0 / 3, 0.25);
  CHECK(ms::loss_weights(ms::exit_weight_rule::layerskip, exits, 4, 0.5) == ms::layerskip_weights(exits, 4, 0.5));
}

TEST_CASE("exits after groups of MoE layers") {
  constexpr ms::sizes every_2nd{.layers = 12, .moe_every = 2}, all_moe{.layers = 5}, dense{.layers = 6, .moe_every = 0};
  static_assert(ms::exits_after_moe_groups(every_2nd, 1) == ms::exits_after(2, 4, 6, 8, 10));
  static_assert(ms::exits_after_moe_groups(every_2nd, 2) == ms::exits_after(4, 8));
  static_assert(ms::exits_after_moe_groups(all_moe, 2) == ms::exits_after(2, 4));
  CHECK(ms::exits_after_moe_groups(dense, 1) == ms::layer_set{});
  CHECK(ms::exits_after_moe_groups(all_moe, 0) == ms::layer_set{});
  CHECK(ms::exits_after_moe_groups(all_moe, -1) == ms::layer_set{});
}

TEST_CASE("the gradual curriculum enables exits from the top down, all at half of the run") {
  const ms::layer_set exits = ms::exits_after(1, 2, 3, 4, 5);
  const ms::curriculum::gradual c;
  const auto on = [&](std::uint64_t step) { return c.enabled(exits, {step, 120, 6}); };  // one more every 10 steps
  CHECK(on(0) == ms::layer_set{});
  CHECK(on(9) == ms::layer_set{});
  CHECK(on(10) == ms::exits_after(5));
  CHECK(on(29) == ms::exits_after(4, 5));
  CHECK(on(30) == ms::exits_after(3, 4, 5));
  CHECK(on(49) == ms::exits_after(2, 3, 4, 5));
  CHECK(on(50) == exits);
  CHECK(on(60) == exits);
  CHECK(on(1000) == exits);
  // A layer that is no exit takes its turn too.
  CHECK(c.enabled(ms::exits_after(2, 4), {19, 120, 6}) == ms::layer_set{});
  CHECK(c.enabled(ms::exits_after(2, 4), {20, 120, 6}) == ms::exits_after(4));
  CHECK(c.enabled(ms::exits_after(2, 4), {40, 120, 6}) == ms::exits_after(2, 4));
}

TEST_CASE("the trainer asks the curriculum for the planned steps") {
  struct grows : ms::variant {
    using curriculum = ms::curriculum::gradual;
  };
  ms::sizes s = tiny_sizes;
  ms::model<grows, ms::cpu<float>> m({.sizes = s, .exits = ms::exits_after(2, 3)});
  ms::trainer<grows, ms::cpu<float>> t(m,
                                       {.steps = 8, .exit_scale = 1, .exit_weighting = ms::exit_weight_rule::uniform});
  const std::vector<int> text = random_tokens(500, s.vocab, 1);
  ms::random_windows data(text, 2, 8, ms::seed{1});
  std::vector<int> trained;
  for (int step = 0; step < 4; ++step) {
    const auto losses = t.step(data).losses;
    trained.push_back((losses.exits[2] > 0) + (losses.exits[3] > 0) + (losses.exits[4] > 0));
  }
  CHECK(trained == std::vector<int>{1, 2, 3, 3});
}

TEST_CASE("schedules") {
  const ms::warmup_stable_decay wsd{.warmup = 10, .decay = 0.2, .floor = 0.1};
  CHECK(wsd.at(0, 100) == doctest::Approx(0.1));
  CHECK(wsd.at(4, 100) == doctest::Approx(0.5));
  CHECK(wsd.at(9, 100) == 1);
  CHECK(wsd.at(50, 100) == 1);
  CHECK(wsd.at(80, 100) == 1);
  CHECK(wsd.at(85, 100) == doctest::Approx(0.1 + 0.9 * 0.5));  // 1 − √(5/20)
  CHECK(wsd.at(100, 100) == doctest::Approx(0.1));
  CHECK(wsd.at(1000, 100) == doctest::Approx(0.1));
  ms::warmup_stable_decay line = wsd;
  line.line = true;
  CHECK(line.at(85, 100) == doctest::Approx(0.1 + 0.9 * 0.75));
  const ms::warmup_stable_decay never{.warmup = 0, .decay = 0};
  CHECK(never.at(0, 100) == 1);
  CHECK(never.at(99, 100) == 1);
  const ms::warmup_stable_decay at_once{.warmup = 50, .decay = 1, .line = true};  // warm-up and decay overlap
  CHECK(at_once.at(9, 100) == doctest::Approx(0.2));
  CHECK(at_once.at(90, 100) == doctest::Approx(0.1));
  const ms::warmup_cosine cosine{.warmup = 10, .floor = 0.1};
  CHECK(cosine.at(4, 110) == doctest::Approx(0.5));
  CHECK(cosine.at(60, 110) == doctest::Approx(0.55));
  CHECK(cosine.at(110, 110) == doctest::Approx(0.1));
}

namespace {

struct losses_and_gradient {
  ms::training_losses<double> losses;
  std::vector<double> gradient;
};

/// One batch of `length` tokens through a model of `vocab` tokens.
losses_and_gradient one_batch(int vocab, int length, double distill) {
  ms::config<ms::variant> c{.sizes = tiny_sizes, .exits = ms::exits_after(2, 3)};
  c.sizes.vocab = vocab, c.sizes.context = length;
  ms::model<ms::variant, ms::reference<double>> m(c, ms::seed{1});
  const std::vector<int> inputs = random_tokens(2 * length, vocab, 1), targets = random_tokens(2 * length, vocab, 2);
  ms::buffer<double> block(m.block().size());
  ms::model_weights<ms::variant, double> grads;
  ms::bind_weights<ms::variant, double>(c, grads, block.data());
  ms::arena memory;
  const ms::batch b{{inputs.data(), 2 * length}, {targets.data(), 2 * length}, 2, length};
  const auto losses = ms::loss_and_gradient(m, b, ms::loss_weights(ms::exit_weight_rule::uniform, c.exits, 4, 1), grads,
                                            ms::seed{5}, 9, memory, {.distill = distill});
  return {losses, {block.view().begin(), block.view().end()}};
}

}  // namespace

TEST_CASE("distillation: its limits, and chunks of rows") {
  // 2 x 80 rows of a vocabulary of 20000 are cut into chunks of 64.
  for (const auto& [vocab, length] : {std::pair(17, 9), std::pair(20000, 80)}) {
    const auto without = one_batch(vocab, length, 0), little = one_batch(vocab, length, 1e-12);
    CHECK(without.losses.divergence[2] == 0);
    CHECK(little.losses.divergence[2] > 1e-4);
    CHECK(little.losses.divergence[4] == 0);
    CHECK(little.losses.total == doctest::Approx(without.losses.total).epsilon(1e-9));
    for (const int e : {2, 3, 4})
      CHECK(little.losses.exits[std::size_t(e)] ==
            doctest::Approx(without.losses.exits[std::size_t(e)]).epsilon(1e-12));
    double error = 0, square = 0;
    for (std::size_t i = 0; i < without.gradient.size(); ++i)
      error += std::pow(little.gradient[i] - without.gradient[i], 2), square += std::pow(without.gradient[i], 2);
    CHECK(error < 1e-18 * square);
  }
}

TEST_CASE("distillation alone makes exits agree with the full depth") {
  std::vector<int> text{1, 2};
  while (text.size() < 3000) text.push_back((text.end()[-1] * 3 + text.end()[-2] + 1) % 17);
  ms::random_windows data(text, 4, 16, ms::seed{2});
  const auto divergence = [&](double exit_scale) {
    ms::model<ms::variant, ms::cpu<float>> m({.sizes = tiny_sizes, .exits = ms::exits_after(2, 3)}, ms::seed{1});
    ms::training<ms::variant> options{.steps = 80, .exit_scale = exit_scale, .optimizer = {.lr = 1e-2}};
    options.distill = 1;
    ms::trainer<ms::variant, ms::cpu<float>> t(m, options);
    for (int i = 0; i < 80; ++i) t.step(data);
    options.exit_scale = 1;  // to measure both
    return double(ms::trainer<ms::variant, ms::cpu<float>>(m, options).step(data).losses.divergence[2]);
  };
  const double untaught = divergence(0), taught = divergence(1);
  CAPTURE(untaught);
  CHECK(taught < 0.2 * untaught);
}

TEST_CASE("schedules and exit rules that mean nothing are refused by name") {
  using B = ms::cpu<float>;
  using S = ms::warmup_stable_decay;
  ms::model<ms::variant, B> m({.sizes = tiny_sizes});
  const auto refused = [&](S schedule, const char* message) {
    CHECK_THROWS_WITH_AS((ms::trainer<ms::variant, B, ms::adamw, S>(m, {.schedule = schedule})),
                         doctest::Contains(message), ms::config_error);
  };
  refused({.warmup = -1}, "training.schedule.warmup");
  refused({.decay = 1.5}, "training.schedule.decay");
  refused({.decay = std::nan("")}, "training.schedule.decay");
  refused({.floor = -0.1}, "training.schedule.floor");
  CHECK_THROWS_WITH_AS((ms::trainer<ms::variant, B>(m, {.exit_weighting = ms::exit_weight_rule(9)})),
                       doctest::Contains("training.exit_weighting"), ms::config_error);
  for (const double distill : {-0.1, 1.1, std::nan("")})
    CHECK_THROWS_WITH_AS((ms::trainer<ms::variant, B>(m, {.distill = distill})), doctest::Contains("training.distill"),
                         ms::config_error);
}
