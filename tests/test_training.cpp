// The trainer: it learns, repeats itself, resumes to the bit, and allocates nothing in a step.
#include <doctest/doctest.h>

#include <cmath>
#include <filesystem>

#include "moeskip/train/resume.hpp"
#include "tiny.hpp"

using namespace tests;
namespace fs = std::filesystem;

namespace {

struct recipe : ms::variant {
  using expert_dropout = ms::expert_dropout::bernoulli;
  using layer_dropout = ms::layer_dropout::exponential;
  using curriculum = ms::curriculum::rotational;
};

constexpr ms::config<recipe> shape{
    .sizes = {.layers = 4, .dim = 32, .heads = 4, .kv_heads = 2, .ffn = 24, .experts = 4, .vocab = 16, .context = 32},
    .exits = ms::exits_every(1, 4),
    .layer_dropout = {.p_max = 0.2f}};

/// A text whose next token follows from the two before it.
std::vector<int> predictable(int count) {
  std::vector<int> tokens{1, 2};
  while (int(tokens.size()) < count) tokens.push_back((tokens.end()[-1] * 3 + tokens.end()[-2] + 1) % 16);
  return tokens;
}

template <class B> struct run {
  std::vector<int> text = predictable(4000);
  ms::random_windows data{text, 4, 24, ms::seed{2}};
  ms::model<recipe, B> model{shape, ms::seed{1}};
  ms::trainer<recipe, B> trainer;
  explicit run(ms::training<recipe> options = {.steps = 60, .schedule = {.warmup = 5}, .optimizer = {.lr = 5e-3}})
      : trainer(model, options) {}

  double to(std::uint64_t step) {
    double loss = 0;
    while (trainer.next_step() < step) loss = double(trainer.step(data).losses.exits[4]);
    return loss;
  }
  std::vector<float> weights() {
    const auto w = trainer.master();
    return {w.begin(), w.end()};
  }
};

struct scratch_folder {
  fs::path path = fs::temp_directory_path() / ms::text("moeskip-test-", int(::getpid()));
  scratch_folder() { fs::create_directories(path); }
  ~scratch_folder() { fs::remove_all(path); }
};

}  // namespace

TEST_CASE_TEMPLATE("training learns a predictable text", B, ms::cpu<float>, ms::cpu<ms::bf16>) {
  run<B> r;
  const double first = r.to(1), last = r.to(60);
  CHECK(first > 2.3);  // near log 16
  CHECK(last < 0.5);
  const auto quality = ms::evaluate(r.model, r.text, 24);
  CHECK(quality.size() == 4);
  CHECK(quality.back().exit_layer == 4);
  CHECK(quality.back().bits_per_token < 0.7);
  CHECK(quality.front().bits_per_token > quality.back().bits_per_token);
}

TEST_CASE_TEMPLATE("the same seed gives the same bits", B, ms::cpu<float>, ms::cpu<ms::bf16>) {
  run<B> a, b;
  a.to(8), b.to(8);
  CHECK(a.weights() == b.weights());
  run<B> c(ms::training<recipe>{.steps = 60, .schedule = {.warmup = 5}, .optimizer = {.lr = 5e-3}, .masks = {77}});
  c.to(8);
  CHECK(a.weights() != c.weights());
}

TEST_CASE_TEMPLATE("resuming gives the bits of never having stopped", B, ms::cpu<float>, ms::cpu<ms::bf16>) {
  const scratch_folder folder;
  run<B> whole, first, second;
  whole.to(12);
  first.to(7);
  ms::save(first.trainer, folder.path / "run.safetensors");
  ms::resume(second.trainer, folder.path / "run.safetensors");
  CHECK(second.trainer.next_step() == 7);
  second.to(12);
  CHECK(whole.weights() == second.weights());
  CHECK(std::equal(whole.model.block().begin(), whole.model.block().end(), second.model.block().begin(),
                   [](auto a, auto b) { return float(a) == float(b); }));
}

TEST_CASE("resuming another run names every difference and changes nothing") {
  const scratch_folder folder;
  run<ms::cpu<float>> first,
      other(ms::training<recipe>{.steps = 61, .clip = 0.5, .schedule = {.warmup = 5}, .optimizer = {.lr = 5e-3}});
  ms::save(first.trainer, folder.path / "run.safetensors");
  const auto before = other.weights();
  CHECK_THROWS_WITH_AS(ms::resume(other.trainer, folder.path / "run.safetensors"),
                       doctest::Contains("training.clip: expected 0.5, got 1; training.steps: expected 61, got 60"),
                       ms::file_error);
  CHECK(other.weights() == before);
}

TEST_CASE("gradient accumulation is the gradient of the larger batch") {
  // Without random masks, two micro-batches of four sequences weigh as much as one batch of eight.
  struct plain : ms::variant {};
  const ms::config<plain> c{.sizes = shape.sizes, .router = {.balance_loss = 0, .z_loss = 0}};
  const std::vector<int> text = predictable(4000);
  ms::random_windows data(text, 4, 24, ms::seed{2});
  std::vector<int> inputs, targets;
  for (std::uint64_t micro = 0; micro < 2; ++micro) {
    const ms::batch b = data.at(0, micro);
    inputs.insert(inputs.end(), b.inputs.begin(), b.inputs.end());
    targets.insert(targets.end(), b.targets.begin(), b.targets.end());
  }
  ms::model<plain, ms::cpu<float>> a(c, ms::seed{1}), b(c, ms::seed{1});
  ms::trainer<plain, ms::cpu<float>> twice(a, {.accumulate = 2}), once(b, {});
  const auto small = twice.step(data);
  const auto large = once.step([&](std::uint64_t, std::uint64_t) {
    return ms::batch{{inputs.data(), inputs.size()}, {targets.data(), targets.size()}, 8, 24};
  });
  CHECK(small.losses.total == doctest::Approx(large.losses.total).epsilon(1e-5));
  CHECK(small.gradient_norm == doctest::Approx(large.gradient_norm).epsilon(1e-4));
}

TEST_CASE("no heap allocation by the arena once it has met its largest step") {
  run<ms::cpu<float>> r;
  r.to(12);
  const std::size_t blocks = r.trainer.memory().blocks();
  r.to(40);
  CHECK(r.trainer.memory().blocks() == blocks);
}

TEST_CASE("exit weights follow LayerSkip's formula") {
  const auto w = ms::layerskip_weights(ms::exits_after(1, 2, 3), 4, 0.5);
  // e(l) = 0.5 l(l+1)/2 below the top: 0, 0.5, 1.5; e(3) = 3 + 0.5 · 3 = 4.5; sum 6.5
  CHECK(w[1] == 0);
  CHECK(w[2] == doctest::Approx(0.5 / 6.5));
  CHECK(w[3] == doctest::Approx(1.5 / 6.5));
  CHECK(w[4] == doctest::Approx(4.5 / 6.5));
  const auto top_only = ms::layerskip_weights({}, 4, 0.5);
  CHECK(top_only[4] == 1);
}

TEST_CASE("the rotational curriculum turns each exit on once in every period") {
  const ms::layer_set exits = ms::exits_after(2, 4, 6, 8, 10);
  const ms::curriculum::rotational r{.every = 2};
  CHECK(r.enabled(exits, 0) == ms::exits_after(2, 6, 10));
  CHECK(r.enabled(exits, 1) == ms::exits_after(4, 8));
  CHECK(r.enabled(exits, 2) == r.enabled(exits, 0));
}

TEST_CASE("dropout policies keep their promises") {
  const ms::expert_dropout::bernoulli often{.p = 0.9f};
  int dropped = 0, total = 0;
  for (std::uint64_t step = 0; step < 2000; ++step) {
    const ms::mask_key key{ms::seed{3}, step, 1, 4};
    const ms::expert_set alive = often.survivors(key, 8, 2);
    CHECK(alive.size() >= 2);
    CHECK(alive == often.survivors(key, 8, 2));
    const ms::expert_set rarely = ms::expert_dropout::bernoulli{.p = 0.25f}.survivors(key, 8, 1);
    dropped += 8 - rarely.size(), total += 8;
  }
  CHECK(double(dropped) / total == doctest::Approx(0.25).epsilon(0.05));
  const ms::layer_dropout::exponential e{.p_max = 0.2f};
  CHECK(e.probability(0, 9) == 0);
  CHECK(e.probability(8, 9) == doctest::Approx(0.2));
  CHECK(e.probability(4, 9) == doctest::Approx(0.2 * (std::sqrt(2.0) - 1)));
  CHECK(ms::layer_dropout::linear{.p_max = 0.2f}.probability(4, 9) == doctest::Approx(0.1));
}

TEST_CASE("layer dropout takes work out of the step") {
  ms::config<recipe> c = shape;
  c.layer_dropout.p_max = 0.9f;
  ms::model<recipe, ms::cpu<float>> dropping(c), whole(shape);
  const auto weights = ms::layerskip_weights({}, 4, 0);
  CHECK(ms::training_flops(dropping, 64, 24, weights, ms::seed{1}, 0) <
        0.8 * ms::training_flops(whole, 64, 24, weights, ms::seed{1}, 0));
}
