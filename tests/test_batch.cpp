// Several sequences at once: the same tokens as alone, whoever else is in the batch, and shared work.
// ctest: optimised
#include <doctest/doctest.h>

#include <numeric>

#include "moeskip/decode/speculative/either.hpp"
#include "moeskip/decode/speculative/small_model.hpp"
#include "tiny.hpp"

using namespace tests;

TEST_CASE("a fibre pauses, goes on, ends, throws, and is unwound") {
  int stage = 0;
  ms::fibre* inside = nullptr;
  ms::fibre f([&] {
    stage = 1, inside->pause();
    stage = 2, inside->pause();
    stage = 3;
  });
  inside = &f;
  for (int i = 1; i <= 3; ++i) {
    f.resume();
    CHECK(stage == i);
    CHECK(f.done() == (i == 3));
  }
  CHECK_THROWS_AS(f.resume(), ms::error);

  ms::fibre thrower([] { throw ms::config_error("from inside"); });
  CHECK_THROWS_WITH_AS(thrower.resume(), "from inside", ms::config_error);
  CHECK(thrower.done());

  struct flag {
    bool& down;
    ~flag() { down = true; }
  };
  bool unwound = false;
  {
    ms::fibre left([&] {
      const flag falls{unwound};
      inside->pause();
      stage = 99;
    });
    inside = &left;
    left.resume();
    CHECK(!unwound);
  }
  CHECK(unwound);
  CHECK(stage == 3);
}

namespace {

struct plain : ms::variant {};
struct following : ms::variant {
  using router = ms::router::segment<ms::router::top_k<2>, 3, 1>;
};

std::vector<std::vector<int>> prompts_for(const ms::sizes& s, int count, std::uint64_t seed) {
  std::vector<std::vector<int>> prompts;
  for (std::uint64_t i = 0; i < std::uint64_t(count); ++i)
    prompts.push_back(random_tokens(random_between(1, s.context / 2, seed, i), s.vocab, seed + 100 * i));
  return prompts;
}

/// In batches of every size: each prompt as generate() alone continues it.
template <class V, class B, class Decoder>
void check_alone(const ms::config<V>& c, const Decoder& decoder, const ms::generation& options, std::uint64_t seed) {
  INFO(Decoder::name);
  CAPTURE(seed);
  ms::model<V, B> m(c, ms::seed{seed});
  for (auto& w : m.block()) w = ms::to<ms::weight_t<B>>(2 * float(ms::real_part(w)));  // exits differ in what they say
  const auto prompts = prompts_for(c.sizes, 4, seed);
  std::vector<std::vector<int>> alone;
  for (const auto& prompt : prompts)
    alone.push_back(ms::generate(m, prompt, options, decoder, [](const ms::emitted&) {}).ids());
  for (const int slots : {1, 3, 20}) {
    CAPTURE(slots);
    ms::batch_session batch(m, slots);
    for (int again = 0; again < (slots == 3 ? 2 : 1); ++again) {
      std::vector<std::vector<int>> streamed(prompts.size());
      const auto together = batch.generate(
          prompts, options, decoder, [&](std::size_t i, const ms::emitted& e) { streamed[i].push_back(e.token); });
      for (std::size_t i = 0; i < prompts.size(); ++i) {
        CAPTURE(i);
        CHECK(together[i].ids() == alone[i]);
        CHECK(streamed[i] == alone[i]);
      }
    }
  }
}

template <class V, class B> void check_decoders(const ms::config<V>& c, std::uint64_t seed) {
  using namespace ms;
  using namespace ms::speculative_decoder;
  using draft_length::fixed;
  const generation greedy{.max_new_tokens = c.sizes.context / 2};
  check_alone<V, B>(c, decoder::autoregressive{}, greedy, seed);
  check_alone<V, B>(c, fixed_length{}, greedy, seed);
  check_alone<V, B>(c, compose<>{}, greedy, seed);
  check_alone<V, B>(c, compose<draft::lookup, acceptance::exact, fixed>{}, greedy, seed);
  check_alone<V, B>(c, compose<draft::either<>>{}, greedy, seed);
  check_alone<V, B>(c, compose<draft::self, acceptance::exact, fixed>{.draft = {.vocabulary = 2}}, greedy, seed);
  check_alone<V, B>(c, compose<draft::fewer_experts, acceptance::exact, fixed>{}, greedy, seed);
  ms::config<plain> drafting{.sizes = random_sizes(seed + 50)};
  drafting.sizes.vocab = c.sizes.vocab;
  ms::model<plain, B> small(drafting, ms::seed{seed});
  check_alone<V, B>(c, compose<draft::small_model<ms::model<plain, B>>, acceptance::exact, fixed>{.draft = {&small}},
                    greedy, seed);
  using rule = exit_rule::max_probability;
  check_alone<V, B>(c, decoder::early_exit<rule>{.rule = {.threshold = 0.3f}}, greedy, seed);
  check_alone<V, B>(c, decoder::early_exit<rule, missing_kv::recompute>{.rule = {.threshold = 0.3f}}, greedy, seed);
  check_alone<V, B>(c, decoder::early_exit<rule, missing_kv::copy>{.rule = {.threshold = 0.3f}}, greedy, seed);

  generation drawn = greedy;
  drawn.sampling = {.temperature = 0.9f, .seed = {7}}, drawn.stop = {1};
  check_alone<V, B>(c, decoder::autoregressive{}, drawn, seed);
  check_alone<V, B>(c, fixed_length{}, drawn, seed);
}

template <class B> void check_variants() {
  const ms::sizes first = random_sizes(1), second = random_sizes(2);
  check_decoders<plain, B>({.sizes = first, .exits = ms::exits_every(1, first.layers)}, 1);
  check_decoders<following, B>({.sizes = second, .exits = ms::exits_every(1, second.layers)}, 2);
}

constexpr ms::config<plain> shape{.sizes = tiny_sizes, .exits = ms::exits_after(1, 2, 3)};

}  // namespace

TEST_CASE("batches continue every prompt as if it were alone") {
  SUBCASE("f32") { check_variants<ms::cpu<float>>(); }
  SUBCASE("bf16") { check_variants<ms::cpu<ms::bf16>>(); }
}

TEST_CASE("rows of a batch share calls, and experts are read once for all of them") {
  ms::model<plain, ms::cpu<float>> m(shape, ms::seed{3});
  const std::vector<int> prompt = random_tokens(9, 17, 5);
  constexpr int tokens = 12;
  const ms::generation options{.max_new_tokens = tokens};
  const auto alone = ms::generate(m, prompt, options, ms::decoder::autoregressive{}, [](const ms::emitted&) {});
  ms::batch_session batch(m, 5);
  const std::vector<std::vector<int>> same(5, prompt);
  const auto together = batch.generate(same, options, ms::decoder::autoregressive{});
  CHECK(batch.stats.layer_calls == tokens * 4);
  CHECK(batch.stats.layer_rows == 5 * tokens * 4);
  CHECK(batch.stats.experts_read == tokens * 2 * 2);  // two MoE layers, two experts each: those of one sequence
  for (const ms::generated& g : together) CHECK(g.stats.layer_steps == alone.stats.layer_steps);
  // Where rows leave early, the others' calls have fewer rows: work shrinks with the layers run.
  const ms::decoder::early_exit<ms::exit_rule::fixed> half{.rule = {.exit_layer = 2}};
  batch.generate(same, options, half);
  CHECK(batch.stats.experts_read == tokens * 2);
  CHECK(batch.stats.layer_rows == 5 * tokens * 2);
}

TEST_CASE("time in a batch: sequences share it, and none counts what it waited") {
  ms::model<plain, ms::cpu<float>> m(shape, ms::seed{3});
  ms::batch_session batch(m, 5);
  const std::vector<std::vector<int>> prompts(10, random_tokens(9, 17, 5));
  double sum = 0;
  for (const ms::generated& g : batch.generate(prompts, {.max_new_tokens = 20}, fixed_length{})) {
    CHECK(g.stats.seconds > 0);
    CHECK(g.stats.draft_seconds + g.stats.verify_seconds <= g.stats.seconds);
    sum += g.stats.seconds;
  }
  CHECK(sum <= batch.stats.seconds);
}

namespace {

/// Leaves after the layer that its prompt begins with.
struct leaves_by_prompt {
  static constexpr std::string_view name = "leaves_by_prompt";
  template <class Session> struct on {
    on(const leaves_by_prompt&, Session&) {}
    template <class Sink> void round(Session& s, ms::sampler& draw_from, int, Sink&& sink) {
      using T = typename Session::T;
      const auto scope = s.memory().scope();
      const int depth = s.tokens().front();
      const ms::mat<T> x = s.memory().template take<T>(1, s.model().sizes().dim);
      const ms::mat<T> logits = s.memory().template take<T>(1, s.model().sizes().vocab);
      s.embed(x);
      s.run(0, depth, x, s.position());
      s.propagate(depth, x, s.position());
      s.logits(logits, x, depth);
      ms::emit_next<T>(s, draw_from, logits.row(0), depth, sink);
    }
  };
};

}  // namespace

TEST_CASE("who goes deep is not passed over for ever") {
  ms::model<plain, ms::cpu<float>> m(shape, ms::seed{3});
  ms::batch_session batch(m, 2);
  std::vector<std::vector<int>> prompts(40, {1, 5});
  prompts[0] = {4, 5};  // all four layers; the others, one after the other in the second slot, one
  std::vector<std::size_t> ended;
  std::vector<int> made(prompts.size());
  batch.generate(prompts, {.max_new_tokens = 12}, leaves_by_prompt{}, [&](std::size_t i, const ms::emitted&) {
    if (++made[i] == 12) ended.push_back(i);
  });
  CHECK(ended.size() == prompts.size());
  CHECK(ended.back() != 0);
}

TEST_CASE("a sequence of a batch can be ended without the others") {
  ms::model<plain, ms::cpu<float>> m(shape, ms::seed{3});
  ms::batch_session batch(m, 2);
  const auto prompts = prompts_for(tiny_sizes, 4, 9);
  const auto out = batch.generate(prompts, {.max_new_tokens = 10}, fixed_length{},
                                  [](std::size_t i, const ms::emitted&) { return i != 2; });
  for (std::size_t i = 0; i < out.size(); ++i) {
    CHECK(out[i].tokens.size() == (i == 2 ? 1u : 10u));
    CHECK(out[i].reason == (i == 2 ? ms::finish::cancelled : ms::finish::length));
  }
  CHECK(batch.generate({}, {}, fixed_length{}).empty());
}

TEST_CASE("what fails in a batch names the prompt and leaves the batch usable") {
  ms::model<plain, ms::cpu<float>> m(shape, ms::seed{3});
  ms::batch_session batch(m, 3);
  auto prompts = prompts_for(tiny_sizes, 5, 9);
  const ms::generation options{.max_new_tokens = 8};
  const auto good = batch.generate(prompts, options, fixed_length{});
  const std::vector<int> kept = std::exchange(prompts[3], {17});
  CHECK_THROWS_WITH_AS(batch.generate(prompts, options, fixed_length{}),
                       "prompts[3]: token id 17 is outside the vocabulary of 17", ms::config_error);
  prompts[3] = kept;
  struct refusal {};
  int seen = 0;
  CHECK_THROWS_AS(batch.generate(prompts, options, fixed_length{},
                                 [&](std::size_t, const ms::emitted&) {
                                   if (++seen == 11) throw refusal{};
                                 }),
                  refusal);
  const auto again = batch.generate(prompts, options, fixed_length{});
  for (std::size_t i = 0; i < prompts.size(); ++i) CHECK(again[i].ids() == good[i].ids());
  prompts[1] = {9, 9};  // nine layers of four
  CHECK_THROWS_WITH_AS(batch.generate(prompts, options, leaves_by_prompt{}), doctest::Contains("prompts["),
                       ms::config_error);
  CHECK_THROWS_WITH_AS(
      batch.generate(prompts, options, fixed_length{},
                     [&](std::size_t, const ms::emitted&) { batch.generate(prompts, options, fixed_length{}); }),
      doctest::Contains("this batch is at work"), ms::config_error);
  CHECK_THROWS_AS((ms::batch_session<plain, ms::cpu<float>>(m, 0)), ms::config_error);
}
