// Batches whose drafts come from a small model: its calls are merged as the large one's are, and nobody's tokens
// change.
// ctest: optimised
#include <doctest/doctest.h>

#include <optional>

#include "tiny.hpp"

using namespace tests;

namespace {

using ms::draft_length::confidence;
using ms::draft_length::fixed;

struct plain : ms::variant {};
struct following : ms::variant {
  using router = ms::router::sticky<ms::router::top_k<1>>;
  using exit_head = ms::exit_head::own;
};
using F = ms::cpu<float>;
using large_model = ms::model<plain, F>;

constexpr ms::config<plain> shape{.sizes = tiny_sizes, .exits = ms::exits_after(1, 2, 3)};
/// Another shape than the large model's, but for the vocabulary.
template <class V> ms::config<V> small_shape(int layers) {
  ms::config<V> c{.sizes = tiny_sizes};
  c.sizes.layers = layers, c.sizes.dim = 8, c.sizes.heads = c.sizes.kv_heads = 2, c.sizes.context += 3;
  return c;
}
/// Weights spread out, so that texts are not all one token.
template <class M> void spread(M& m) {
  for (auto& w : m.block()) w = ms::to<std::decay_t<decltype(w)>>(2 * float(w));
}

template <class Small, class Length = fixed> using drafted =
    ms::speculative_decoder::compose<ms::draft::small_model<Small>, ms::acceptance::exact, Length>;

const auto ignore = [](const ms::emitted&) {};
const ms::generation greedy{.max_new_tokens = 14};
const ms::generation drawn{.max_new_tokens = 14, .sampling = {.temperature = 0.9f, .seed = {7}}, .stop = {1}};

std::vector<std::vector<int>> ragged_prompts(int count) {
  std::vector<std::vector<int>> prompts;
  for (std::uint64_t i = 0; i < std::uint64_t(count); ++i)
    prompts.push_back(random_tokens(random_between(1, 17, 3, i), tiny_sizes.vocab, 40 + i));
  return prompts;
}
/// Prompts of tokens other than 4, but for the first.
std::vector<std::vector<int>> first_is_special(int count) {
  std::vector<std::vector<int>> prompts(std::size_t(count), {1, 5});
  prompts[0] = {4, 5};
  return prompts;
}

/// What became of all drafts.
ms::decode_stats total(const std::vector<ms::generated>& all) {
  ms::decode_stats sum;
  for (const ms::generated& g : all) sum += g.stats;
  return sum;
}

/// In batches of several sizes: each prompt as generate() alone continues it, drafts included, from calls of the small
/// model that have rows of several sequences. Returns what became of all drafts.
template <class M, class Decoder>
ms::decode_stats check_alone(M& m, const Decoder& decoder, const ms::generation& options) {
  const auto prompts = ragged_prompts(7);
  std::vector<ms::generated> alone;
  for (const auto& prompt : prompts) alone.push_back(ms::generate(m, prompt, options, decoder, ignore));
  ms::call_counts one_by_one;
  ms::decode_stats sum;
  for (const int slots : {1, 3, 20}) {
    CAPTURE(slots);
    ms::batch_session batch(m, slots);
    const auto together = batch.generate(prompts, options, decoder);
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      CAPTURE(i);
      CHECK(together[i].ids() == alone[i].ids());
      CHECK(together[i].stats.drafted_at == alone[i].stats.drafted_at);
      CHECK(together[i].stats.accepted_at == alone[i].stats.accepted_at);
    }
    const ms::call_counts drafts = batch.stats.drafts;
    if (slots == 1) one_by_one = drafts;
    CHECK(drafts.layer_rows == one_by_one.layer_rows);
    if (slots > 1) CHECK(double(drafts.layer_calls) < (slots == 3 ? 0.55 : 0.35) * double(one_by_one.layer_calls));
    CHECK(drafts.layer_rows <= 16 * drafts.layer_calls);
    sum += total(together);
  }
  CHECK(sum.drafted > 0);
  return sum;
}

template <class B, class Small, class SmallB> void check_pair() {
  ms::model<plain, B> m(shape, ms::seed{3});
  ms::model<Small, SmallB> small(small_shape<Small>(3), ms::seed{4});
  spread(m), spread(small);
  const ms::draft::small_model<ms::model<Small, SmallB>> draft{&small};
  for (const ms::generation& options : {greedy, drawn}) {
    check_alone(m, drafted<ms::model<Small, SmallB>>{draft, {.num_speculations = 5}}, options);
    check_alone(m, drafted<ms::model<Small, SmallB>, confidence>{draft, {.threshold = 0.12}}, options);
  }
}

}  // namespace

TEST_CASE(
    "drafts of a small model in a batch: the tokens of each sequence alone, whatever the two models are made of") {
  SUBCASE("f32") { check_pair<F, plain, F>(); }
  SUBCASE("bf16, another variant") { check_pair<ms::cpu<ms::bf16>, following, ms::cpu<ms::bf16>>(); }
  SUBCASE("another variant and other weights") { check_pair<F, following, ms::cpu<ms::bf16>>(); }
  SUBCASE("another scalar and backend") { check_pair<F, following, ms::reference<double>>(); }
}

TEST_CASE("drafts that are often right in a batch: they catch up with what was accepted") {
  large_model m(shape, ms::seed{3});
  ms::model<plain, ms::cpu<ms::bf16>> rounded(shape, ms::seed{3});
  spread(m), spread(rounded);
  using decoder = drafted<decltype(rounded)>;
  for (const ms::generation& options : {greedy, drawn}) {
    const ms::decode_stats seen = check_alone(m, decoder{.draft = {&rounded}}, options);
    CHECK(seen.acceptance_rate() > 0.5);
  }
  // The model drafts for itself, at full depth: its other calls are not those drafts'.
  const ms::decode_stats seen = check_alone(m, drafted<large_model>{.draft = {&m}}, greedy);
  CHECK(seen.accepted == seen.drafted);
}

TEST_CASE("sequences in step run the small model in the calls of one, and what it reads is not the large one's") {
  large_model m(shape, ms::seed{3});
  large_model small(small_shape<plain>(2), ms::seed{4});  // the second layer is MoE
  const drafted<large_model> decoder{.draft = {&small}, .length = {.num_speculations = 3}};
  const std::vector<std::vector<int>> same(20, random_tokens(9, tiny_sizes.vocab, 5));
  const auto counts = [&](std::size_t prompts, int slots) {
    ms::batch_session batch(m, slots);
    batch.generate(std::span(same).first(prompts), greedy, decoder);
    return batch.stats;
  };
  const ms::batch_stats one = counts(1, 1), five = counts(5, 5), twenty = counts(20, 20);
  CHECK(one.drafts.layer_calls > 0);
  CHECK(five.drafts.layer_calls == one.drafts.layer_calls);
  CHECK(five.drafts.layer_rows == 5 * one.drafts.layer_rows);
  CHECK(five.drafts.experts_read == one.drafts.experts_read);
  CHECK(five.layer_rows == 5 * one.layer_rows);
  // No call of more than 16 rows: most are of one row for each sequence.
  CHECK(twenty.drafts.layer_calls >= 2 * one.drafts.layer_calls);
  CHECK(twenty.drafts.layer_calls < 3 * one.drafts.layer_calls);
  // Plainly, nobody drafts.
  ms::batch_session batch(m, 5);
  batch.generate(same, greedy, decoder);
  batch.generate(same, greedy, ms::decoder::autoregressive{});
  CHECK(batch.stats.drafts.layer_calls == 0);
}

TEST_CASE("verifications gather behind the small model's drafts") {
  large_model m(shape, ms::seed{3});
  large_model small(small_shape<plain>(2), ms::seed{4});
  spread(m), spread(small);
  const drafted<large_model> decoder{.draft = {&small}, .length = {.num_speculations = 3}};
  const auto prompts = ragged_prompts(12);
  const auto calls = [&](int slots) {
    ms::batch_session batch(m, slots);
    batch.generate(prompts, greedy, decoder);
    return double(batch.stats.layer_calls);
  };
  CHECK(calls(4) < 0.33 * calls(1));
}

namespace {

/// Asks for sessions beside its own, and makes one token.
struct asking {
  static constexpr std::string_view name = "asking";
  large_model *one, *other;
  template <class Session> struct on {
    on(const asking& o, Session& s) {
      auto first = ms::session_beside(s, *o.one);
      const auto second = ms::session_beside(s, *o.one), third = ms::session_beside(s, *o.other);
      CHECK(&first->model() == o.one);
      CHECK(&second->model() == o.one);
      CHECK(&third->model() == o.other);
      for (const auto& beside : {first, second, third}) {
        CHECK(beside->slot() == s.slot());
        CHECK(beside->lanes() == s.lanes());
      }
      const auto keys = [](auto& of) { return of.keys_values(0).keys.data(); };
      CHECK(keys(*first) != keys(*second));
      const auto* const let_go = first.get();
      first.reset();
      CHECK(&ms::session_beside(s, *o.other)->model() == o.other);
      const auto again = ms::session_beside(s, *o.one);
      if (s.lanes()) CHECK(again.get() == let_go);
    }
    template <class Sink> void round(Session& s, ms::sampler&, int, Sink&& sink) {
      s.push(1);
      sink(ms::emitted{1, s.model().layers(), false});
    }
  };
};

}  // namespace

TEST_CASE("sessions beside one: of the model that was asked for, each caller's own until it lets go") {
  large_model m(shape, ms::seed{3}), one(small_shape<plain>(2), ms::seed{4}), other(small_shape<plain>(3), ms::seed{5});
  const asking decoder{&one, &other};
  ms::generate(m, std::vector{1, 2}, {.max_new_tokens = 1}, decoder, ignore);
  ms::batch_session batch(m, 2);
  batch.generate(ragged_prompts(3), {.max_new_tokens = 1}, decoder);
}

TEST_CASE("what fails while small models draft leaves the batch usable, and a batch outlives the models that drafted") {
  large_model m(shape, ms::seed{3});
  spread(m);
  ms::batch_session batch(m, 3);
  const auto prompts = ragged_prompts(7);
  std::vector<std::vector<int>> expected;
  for (const auto& prompt : prompts)
    expected.push_back(ms::generate(m, prompt, greedy, ms::decoder::autoregressive{}, ignore).ids());
  std::optional<large_model> small;
  for (const int layers : {1, 5, 3}) {  // at the same address
    CAPTURE(layers);
    small.emplace(small_shape<plain>(layers), ms::seed{4});
    const drafted<large_model> decoder{.draft = {&*small}};
    const auto check = [&] {
      const auto made = batch.generate(prompts, greedy, decoder);
      for (std::size_t i = 0; i < prompts.size(); ++i) CHECK(made[i].ids() == expected[i]);
    };
    check();
    struct refusal {};
    for (const int last : {1, 2, 9, 30}) {
      int seen = 0;
      CHECK_THROWS_AS(batch.generate(prompts, greedy, decoder,
                                     [&](std::size_t, const ms::emitted&) {
                                       if (++seen == last) throw refusal{};
                                     }),
                      refusal);
      check();
    }
  }
  ms::config<plain> c = small_shape<plain>(2);
  c.sizes.vocab = 16;
  small.emplace(c, ms::seed{4});
  CHECK_THROWS_WITH_AS(batch.generate(prompts, greedy, drafted<large_model>{.draft = {&*small}}),
                       "prompts[0]: small_model.model has another vocabulary than the model it drafts for: expected 17 "
                       "tokens, got 16",
                       ms::config_error);
}

TEST_CASE("time in a batch with a small model: sequences share it, and none counts what it waited") {
  large_model m(shape, ms::seed{3}), small(small_shape<plain>(2), ms::seed{4});
  ms::batch_session batch(m, 5);
  double sum = 0;
  for (const ms::generated& g : batch.generate(ragged_prompts(10), greedy, drafted<large_model>{.draft = {&small}})) {
    CHECK(g.stats.draft_seconds > 0);
    CHECK(g.stats.draft_seconds + g.stats.verify_seconds <= g.stats.seconds);
    sum += g.stats.seconds;
  }
  CHECK(sum <= batch.stats.seconds);
}

namespace {

/// A prompt that begins with 4 is continued by the model, any other by the model beside it alone.
struct mostly_beside {
  static constexpr std::string_view name = "mostly_beside";
  large_model* other;
  template <class Session> struct on {
    std::shared_ptr<ms::session<plain, F>> beside;
    on(const mostly_beside& o, Session& s) : beside(ms::session_beside(s, *o.other)) {}
    template <class Sink> void round(Session& s, ms::sampler& draw_from, int, Sink&& sink) {
      ms::session<plain, F>& by = s.tokens().front() == 4 ? s : *beside;
      if (&by != &s) by.prefill(s.tokens());
      const auto scope = by.memory().scope();
      const ms::mat<float> x = by.memory().take<float>(1, by.model().sizes().dim);
      const ms::mat<float> logits = by.memory().take<float>(1, by.model().sizes().vocab);
      by.embed(x);
      by.run(0, by.model().layers(), x, by.position());
      by.logits(logits, x, by.model().layers());
      ms::emit_next<float>(s, draw_from, logits.row(0), by.model().layers(), sink);
    }
  };
};

}  // namespace

TEST_CASE("who needs the large model is not passed over for ever by those who ask the small one") {
  large_model m(shape, ms::seed{3}), small(small_shape<plain>(2), ms::seed{4});
  ms::batch_session batch(m, 2);
  const auto prompts = first_is_special(40);  // the others follow each other in the second slot
  std::vector<std::size_t> ended;
  std::vector<int> made(prompts.size());
  batch.generate(prompts, {.max_new_tokens = 12}, mostly_beside{&small}, [&](std::size_t i, const ms::emitted&) {
    if (++made[i] == 12) ended.push_back(i);
  });
  CHECK(ended.size() == prompts.size());
  CHECK(ended.front() != 0);  // drafts first
  CHECK(ended.back() != 0);
}
