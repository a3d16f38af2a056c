// The trainer: it learns, repeats itself, resumes to the bit, and allocates nothing in a step.
#include <doctest/doctest.h>

#include <atomic>
#include <cmath>
#include <filesystem>
#include <numeric>

#include "moeskip/train/resume.hpp"
#include "tiny.hpp"

using namespace tests;
namespace fs = std::filesystem;

namespace own_policies {

/// The top two of the living experts; counts the rows that pass.
struct counting_router {
  static constexpr std::string_view name = "counting";
  static constexpr int experts_per_token = 2;
  static inline std::atomic<int> forward_rows{0}, backward_rows{0};

  template <class T> void score(const ms::routed_token<T>& t) const {
    ++forward_rows;
    ms::router::top_k<2>{}.score(t);
  }
  template <class T> void choose(const ms::routed_token<T>& t) const { ms::router::top_k<2>{}.choose(t); }
  template <class T> void weigh(const ms::routed_token<T>& t) const { ms::router::top_k<2>{}.weigh(t); }
  template <class T> void backward(const ms::routed_token<T>& t, const T* dgate, T* dp, T* dlogits) const {
    ++backward_rows;
    ms::router::top_k<2>{}.backward(t, dgate, dp, dlogits);
  }
  friend bool operator==(const counting_router&, const counting_router&) = default;
};

/// Half of the experts vanish; remembers which were left.
struct remembering_dropout {
  static constexpr std::string_view name = "remembering";
  static inline std::vector<ms::expert_set> drawn{};

  ms::expert_set survivors(const ms::mask_key& key, int experts, int at_least) const {
    drawn.push_back(ms::expert_dropout::bernoulli{.p = 0.5f}.survivors(key, experts, at_least));
    return drawn.back();
  }
  friend bool operator==(const remembering_dropout&, const remembering_dropout&) = default;
};

/// Expert 2 is always dead.
struct without_expert_2 {
  static constexpr std::string_view name = "without_expert_2";
  ms::expert_set survivors(const ms::mask_key&, int experts, int) const {
    return ms::expert_set::first(experts).erase(2);
  }
  friend bool operator==(const without_expert_2&, const without_expert_2&) = default;
};

/// AdamW with a number that it does not list.
struct secretive_adamw : ms::adamw {
  static constexpr std::string_view name = "secretive";
  int secret = 0;
  template <class Self, class F> static constexpr void fields(Self&, F&&) = delete;
  friend bool operator==(const secretive_adamw&, const secretive_adamw&) = default;
};

}  // namespace own_policies
using namespace own_policies;

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

struct rows_skipped : ms::variant {
  using router = counting_router;
  using layer_dropout = ms::layer_dropout::linear;
};
struct half_skipped : ms::variant {
  using router = counting_router;
  using expert_dropout = remembering_dropout;
  using layer_dropout = ms::layer_dropout::linear;
};
constexpr ms::config<half_skipped> half{
    .sizes = {.layers = 4, .dim = 24, .heads = 4, .ffn = 16, .experts = 16, .vocab = 16, .context = 32},
    .layer_dropout = {.p_max = 0.6f}};

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

TEST_CASE("resuming with another text of the same length, or with weights of another type, is refused") {
  const scratch_folder folder;
  const fs::path file = folder.path / "run.safetensors";
  run<ms::cpu<float>> first, second;
  ms::save(first.trainer, file, first.data.about());
  CHECK_NOTHROW(ms::resume(second.trainer, file, second.data.about()));
  CHECK_THROWS_WITH_AS(ms::resume(second.trainer, file), doctest::Contains("data.hash: expected nothing, got "),
                       ms::file_error);
  second.text[100] = (second.text[100] + 1) % 16;
  REQUIRE(second.text != first.text);
  CHECK_THROWS_WITH_AS(ms::resume(second.trainer, file, second.data.about()), doctest::Contains("data.hash: expected "),
                       ms::file_error);
  run<ms::cpu<ms::bf16>> rounded;
  CHECK_THROWS_WITH_AS(ms::resume(rounded.trainer, file, rounded.data.about()),
                       doctest::Contains("training.weight: expected bf16, got f32"), ms::file_error);
  // The hash is part of files: it must not change, nor differ between machines.
  const std::vector<int> text{1, -2, 3'000'000};
  CHECK(ms::random_windows(text, 1, 2, ms::seed{0}).about().at("data.hash") == "12715664878941492089");
}

TEST_CASE("an optimizer whose numbers a checkpoint would lose is not saved") {
  const scratch_folder folder;
  ms::model<recipe, ms::cpu<float>> m(shape, ms::seed{1});
  using trainer = ms::trainer<recipe, ms::cpu<float>, secretive_adamw>;
  trainer plain(m, {});
  CHECK_NOTHROW(ms::save(plain, folder.path / "run.safetensors"));
  ms::training<recipe, secretive_adamw> options;
  options.optimizer.secret = 3;
  trainer secretive(m, options);
  CHECK_THROWS_WITH_AS(ms::save(secretive, folder.path / "run.safetensors"),
                       doctest::Contains("a checkpoint would lose numbers of slot optimizer (secretive)"),
                       ms::config_error);
}

TEST_CASE("a curriculum whose numbers mean nothing is refused") {
  ms::model<recipe, ms::cpu<float>> m(shape, ms::seed{1});
  for (const int every : {0, -3})
    CHECK_THROWS_WITH_AS((ms::trainer<recipe, ms::cpu<float>>(m, {.curriculum = {.every = every}})),
                         "training.curriculum: every must be at least 1", ms::config_error);
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
  CHECK(r.enabled(exits, {0}) == ms::exits_after(2, 6, 10));
  CHECK(r.enabled(exits, {1}) == ms::exits_after(4, 8));
  CHECK(r.enabled(exits, {2}) == r.enabled(exits, {0}));
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

TEST_CASE_TEMPLATE("rows that layer dropout takes out are not computed, the others as if they were alone", B,
                   ms::reference<double>, ms::cpu<float>) {
  using T = ms::scalar_t<B>;
  constexpr int sequences = 12, length = 5, layers = 4;
  ms::model<rows_skipped, B> m({.sizes = half.sizes, .layer_dropout = half.layer_dropout}, ms::seed{4});
  const std::vector<int> tokens = random_tokens(sequences * length, 16, 3);
  ms::arena memory;
  const ms::token_rows rows = ms::batch_rows(sequences, length, memory);
  ms::no_tape nothing(memory);
  int skipped = 0;
  for (std::uint64_t step = 0; step < 5; ++step) {
    ms::tape<T> record(memory, ms::seed{9}, step);
    ms::kv_on_arena<T> kv(memory, sequences, length, 24), kv_alone(memory, 1, length, 24);
    ms::mat<T> x = memory.take<T>(sequences * length, 24);
    m.embed(x, {tokens.data(), sequences * length});
    for (int l = 0; l < layers; ++l) {
      counting_router::forward_rows = 0;
      const ms::mat<T> y = m.run_layers(l, l + 1, x, kv, rows, record);
      const int computed = counting_router::forward_rows;
      int staying = 0;
      for (int q = 0; q < sequences; ++q) {
        const bool stays = m.participates(l, q, ms::seed{9}, step);
        staying += stays;
        ms::mat<T> expected = memory.take<T>(length, 24);
        std::copy_n(x.row(q * length).data(), expected.size(), expected.data());
        if (stays) m.run_layers(l, l + 1, expected, kv_alone, rows.rows(0, length), nothing);
        const T* got = y.row(q * length).data();
        for (int i = 0; i < length * 24; ++i)
          if (stays ? got[i] != doctest::Approx(expected.data()[i]).epsilon(1e-4) : got[i] != expected.data()[i])
            FAIL_CHECK("layer ", l, ", sequence ", q, ", element ", i);
      }
      CHECK(computed == staying * length);
      skipped += sequences - staying;
      if (l == 0) CHECK(staying == sequences);  // its probability is 0
      x = y;
    }
  }
  CHECK(skipped > 5 * sequences);  // expected: 5 · 12 · (0.2 + 0.4 + 0.6) = 72
  CHECK(skipped < 5 * sequences * 2);
}

TEST_CASE("each layer is skipped as often as its policy says") {
  ms::model<half_skipped, ms::cpu<float>> m(half);
  for (int l = 0; l < 4; ++l) {
    int stayed = 0;
    for (std::uint64_t step = 0; step < 1000; ++step)
      for (int q = 0; q < 4; ++q) stayed += m.participates(l, q, ms::seed{1}, step);
    CHECK(stayed / 4000.0 == doctest::Approx(1 - 0.2 * l).epsilon(0.04));  // over 3 standard deviations
  }
}

TEST_CASE("micro-batches of one step draw masks of their own, and backward goes through the rows of forward") {
  ms::model<half_skipped, ms::cpu<float>> m(half);
  ms::trainer<half_skipped, ms::cpu<float>> t(m, {.steps = 10, .accumulate = 2});
  const std::vector<int> text = predictable(1000);
  ms::random_windows windows(text, 8, 12, ms::seed{2});
  const ms::batch always_the_same = windows.at(0);
  std::vector<int> rows;                               // that visited a layer, by micro-batch
  std::vector<std::vector<ms::expert_set>> survivors;  // of its layers, by micro-batch
  const auto settle = [&] {
    if (!remembering_dropout::drawn.empty()) {
      CHECK(counting_router::backward_rows == counting_router::forward_rows);
      rows.push_back(counting_router::forward_rows), survivors.push_back(remembering_dropout::drawn);
    }
    counting_router::forward_rows = counting_router::backward_rows = 0, remembering_dropout::drawn.clear();
  };
  remembering_dropout::drawn.clear(), settle();
  for (int step = 0; step < 4; ++step) t.step([&](std::uint64_t, std::uint64_t) { return settle(), always_the_same; });
  settle();

  REQUIRE(rows.size() == 8);
  for (std::size_t i = 0; i < 8; ++i) {
    CHECK(survivors[i].size() >= 3);  // the deepest layer may have been skipped by all
    for (std::size_t j = 0; j < i; ++j) CHECK(survivors[i] != survivors[j]);
  }
  // Numbers of rows may agree by chance, but not those of both micro-batches in every step.
  CHECK((rows[0] != rows[1] || rows[2] != rows[3] || rows[4] != rows[5] || rows[6] != rows[7]));
}

TEST_CASE_TEMPLATE("the balance loss counts living experts only", B, ms::reference<double>, ms::cpu<float>) {
  using T = ms::scalar_t<B>;
  B backend;
  ms::arena memory;
  // Probabilities of experts 0, 1, 3: (1, 2, 5) / 8 and (4, 3, 1) / 8; expert 2 is dead, however good its logit.
  const T logits[] = {0, T(std::log(2.)), 100, T(std::log(5.)), T(std::log(4.)), T(std::log(3.)), 50, 0};
  const ms::mat<const T> l(logits, 2, 4);
  const ms::expert_set set = ms::expert_set::first(4).erase(2);
  const ms::routing_call<T> call{.alive = {{&set, 1}}};
  const ms::routing<T> r{memory.take<T>(2, 4), memory.take<int>(2, 2), memory.take<T>(2, 2), memory.take<T>(4)};
  const ms::router::top_k<2> router;
  ms::route(backend, r, l, router, call, memory);
  CHECK(std::vector<int>(r.chosen.begin(), r.chosen.end()) == std::vector<int>{3, 1, 0, 1});
  // load (1/4, 1/2, 0, 1/4), mean probability (5, 5, 0, 6) / 16: 3 · (5/64 + 10/64 + 6/64)
  const ms::auxiliary_losses<T> losses = losses_of(backend, r, l, call, memory);
  CHECK(losses.balance == doctest::Approx(3 * 21 / 64.0));
  CHECK(losses.z == doctest::Approx(std::log(8.) * std::log(8.)));
  // Its gradient, p (dp − Σ p dp) with dp = 3/2 · load = (3, 6, 0, 3) / 8.
  ms::mat<T> dgate = memory.take_zeroed<T>(2, 2), dlogits = memory.take<T>(2, 4);
  ms::route_backward(backend, dlogits, dgate, l, r, router, call, {.balance = 1}, memory);
  // Σ p dp is 30/64 in the first row and 33/64 in the second.
  CHECK(dlogits(0, 0) == doctest::Approx(0.125 * (24 - 30) / 64).epsilon(1e-5));
  CHECK(dlogits(0, 1) == doctest::Approx(0.25 * (48 - 30) / 64).epsilon(1e-5));
  CHECK(dlogits(0, 2) == 0);
  CHECK(dlogits(0, 3) == doctest::Approx(0.625 * (24 - 30) / 64).epsilon(1e-5));
  CHECK(dlogits(1, 0) == doctest::Approx(0.5 * (24 - 33) / 64).epsilon(1e-5));
  CHECK(dlogits(1, 1) == doctest::Approx(0.375 * (48 - 33) / 64).epsilon(1e-5));
  CHECK(dlogits(1, 2) == 0);
  CHECK(dlogits(1, 3) == doctest::Approx(0.125 * (24 - 33) / 64).epsilon(1e-5));
}

TEST_CASE("a training step balances over the survivors of expert dropout") {
  struct crippled : ms::variant {
    using expert_dropout = without_expert_2;
  };
  ms::model<crippled, ms::cpu<float>> m({.sizes = shape.sizes}, ms::seed{1});
  for (const ms::tensor_info& t : m.tensors())
    if (t.name.ends_with("mlp.gate.weight")) std::fill_n(m.block().data() + t.offset, t.size, 0.f);
  ms::trainer<crippled, ms::cpu<float>> t(m, {});
  const std::vector<int> text = predictable(1000);
  ms::random_windows data(text, 2, 12, ms::seed{1});
  // Equal scores: three living experts of probability 1/3, every token to the first two of them.
  const auto losses = t.step(data).losses;
  CHECK(losses.balance == doctest::Approx(3 * 2 * (1 / 2.0 * 1 / 3.0)));
  CHECK(losses.z == doctest::Approx(std::log(3.) * std::log(3.)));
}

TEST_CASE("evaluation reads windows spread over the whole text") {
  ms::model<recipe, ms::cpu<float>> m(shape, ms::seed{3});
  for (float& w : m.block()) w *= 1.5f;
  constexpr int length = 8, half_windows = 6;
  std::vector<int> text(length * half_windows, 5);
  const std::vector<int> noise = random_tokens(length * half_windows + 1, 16, 8);
  text.insert(text.end(), noise.begin(), noise.end());
  const auto bits = [&](int first_window, int windows, int sequences = 8, int most = 0) {
    const std::span<const int> part(text.data() + first_window * length, std::size_t(windows * length + 1));
    return ms::evaluate(m, part, length, sequences, most).back().bits_per_token;
  };
  const double constant = bits(0, 6), random = bits(6, 6), whole = bits(0, 12);
  CHECK(std::abs(constant - random) > 0.2);
  CHECK(whole == doctest::Approx((constant + random) / 2).epsilon(1e-5));
  for (const int sequences : {1, 5, 7, 100}) CHECK(bits(0, 12, sequences) == doctest::Approx(whole).epsilon(1e-5));
  // Of at most two windows, one is the first and one begins the second half; of four, every third.
  CHECK(bits(0, 12, 8, 2) == doctest::Approx((bits(0, 1) + bits(6, 1)) / 2).epsilon(1e-5));
  CHECK(bits(0, 12, 3, 4) == doctest::Approx((bits(0, 1) + bits(3, 1) + bits(6, 1) + bits(9, 1)) / 4).epsilon(1e-5));
  CHECK(bits(0, 12, 8, 50) == doctest::Approx(whole).epsilon(1e-5));
}

TEST_CASE("first weights have the standard deviations that they should") {
  const ms::config<ms::variant> c{.sizes = {.layers = 6,
                                            .dim = 64,
                                            .heads = 8,
                                            .kv_heads = 8,
                                            .head_dim = 16,
                                            .ffn = 96,
                                            .experts = 2,
                                            .vocab = 100,
                                            .moe_every = 2}};
  const ms::model<ms::variant, ms::cpu<float>> m(c, ms::seed{1});
  int residual = 0, norms = 0;
  for (const ms::tensor_info& t : m.tensors()) {
    CAPTURE(t.name);
    const ms::vec<const float> w(m.block().data() + t.offset, t.size);
    if (t.name.ends_with("norm.weight")) {
      CHECK(std::all_of(w.begin(), w.end(), [](float x) { return x == 1; }));
      ++norms;
      continue;
    }
    const double mean = std::accumulate(w.begin(), w.end(), 0.0) / double(t.size);
    const double square = std::inner_product(w.begin(), w.end(), w.begin(), 0.0) / double(t.size);
    const bool to_the_stream = t.name.ends_with("o_proj.weight") || t.name.ends_with("down_proj.weight");
    const double std = 1 / std::sqrt(double(t.shape.back())) / (to_the_stream ? std::sqrt(2.0 * 6) : 1);
    residual += to_the_stream;
    const double tolerance = t.size < 1000 ? 0.3 : 0.04;  // the router has 128 weights, all others thousands
    CHECK(std::sqrt(square) == doctest::Approx(std).epsilon(tolerance));
    CHECK(std::abs(mean) < tolerance * std);
  }
  CHECK(residual == 6 + 3 * 2 + 3);  // one attention a layer, two experts in every other, dense ones between
  CHECK(norms == 2 * 6 + 1);
}
