// Drafts that are not the model's own layers: whatever proposes, the text stays the full model's, token for token when
// greedy and in distribution when sampled. And what each draft proposes is what it promises.
// ctest: optimised
#include <doctest/doctest.h>

#include <cmath>

#include "chi_square.hpp"

using namespace tests;

namespace {

using ms::draft::lookup;
using ms::draft::self;

template <class Draft, class Acceptance = ms::acceptance::exact, class Length = ms::draft_length::fixed>
using speculative = ms::speculative_decoder::compose<Draft, Acceptance, Length>;
template <class M> using by_model = ms::draft::small_model<M>;

struct small : ms::variant {};
struct other : ms::variant {
  using router = ms::router::sticky<ms::router::top_k<1>>;
  using exit_head = ms::exit_head::own;
};
const auto ignore = [](const ms::emitted&) {};
const ms::sampling warm{.temperature = 1.f};

/// In every other round proposes token 0, once; otherwise nothing.
struct sometimes {
  static constexpr std::string_view name = "sometimes";
  template <class Session> struct on {
    using T = typename Session::T;
    int round = 0, proposed = 0;
    on(const sometimes&, Session&) {}
    static int exit_layer() { return 0; }
    void begin(Session&, int) { ++round, proposed = 0; }
    bool next(Session&, int, ms::vec<T> logits) {
      if (round % 2 == 0 || proposed++) return false;
      std::fill(logits.begin(), logits.end(), T{});
      logits[0] = T(9);
      return true;
    }
    void verify(Session& s, std::span<const int> tokens, ms::mat<T> logits) { ms::draft::full_pass(s, tokens, logits); }
  };
};

using large_session = ms::session<small, ms::cpu<float>>;
using small_bf16 = ms::model<other, ms::cpu<ms::bf16>>;
template <class Draft> constexpr bool composes =
    ms::Draft<Draft, large_session>&& ms::SpeculativeDecoder<speculative<Draft>, large_session, ms::sampler>;
static_assert(composes<lookup> && composes<by_model<small_bf16>> && composes<ms::draft::either<>> &&
              composes<ms::draft::either<lookup, by_model<small_bf16>>> && composes<sometimes>);
static_assert(std::is_same_v<ms::draft::either<>, ms::draft::either<lookup, self>>);
static_assert(ms::Acceptance<ms::acceptance::typical>);

template <class V> ms::config<V> random_config(std::uint64_t i) {
  ms::config<V> c{.sizes = random_sizes(i)};
  c.exits = ms::exits_every(1, c.sizes.layers);
  return c;
}
/// Weights spread out, so that texts are not all one token.
template <class M> void spread(M& m) {
  for (auto& w : m.block()) w = ms::to<std::decay_t<decltype(w)>>(1.5f * float(w));
}

/// Three prompts in one session, the last to the end of the context, by each draft.
template <class B, class Small = ms::model<other, ms::cpu<float>>> void check_greedy(std::uint64_t i) {
  ms::model<small, B> m(random_config<small>(i), ms::seed{i});
  ms::config<typename Small::variant_type> c = random_config<typename Small::variant_type>(i + 777);
  c.sizes.vocab = m.sizes().vocab, c.sizes.context = m.sizes().context + int(i % 3);
  Small drafting(c, ms::seed{i + 1});
  spread(m), spread(drafting);
  const auto pick = [&](int low, int high, std::uint64_t what) { return random_between(low, high, i, what); };
  const ms::draft_length::fixed length{.num_speculations = pick(1, 18, 23)};
  const lookup looking{.longest_match = pick(2, 5, 24), .shortest_match = pick(1, 2, 25)};
  const self shallow{.exit_layer = pick(1, m.layers() - 1, 22)};
  ms::session s(m);
  struct task {
    std::vector<int> prompt;
    ms::generation options;
    ms::generated plain;
  };
  std::vector<task> tasks;
  for (std::uint64_t n = 0; n < 3; ++n) {
    const std::vector<int> prompt = random_tokens(pick(1, 30, 30 + n), m.sizes().vocab, i + n / 2);
    const ms::generation options{.max_new_tokens = n < 2 ? pick(1, 20, 40 + n) : 0};
    tasks.push_back({prompt, options, ms::generate(s, prompt, options, ms::decoder::autoregressive{}, ignore)});
  }
  const auto check = [&](const auto& draft) {
    INFO(draft.name);
    for (const task& t : tasks) {
      const speculative<std::decay_t<decltype(draft)>> decoder{draft, length};
      const auto drafted = ms::generate(s, t.prompt, t.options, decoder, ignore);
      CHECK(drafted.ids() == t.plain.ids());
      CHECK(drafted.reason == t.plain.reason);
      using by_utility = speculative<std::decay_t<decltype(draft)>, ms::acceptance::exact, ms::draft_length::utility>;
      CHECK(ms::generate(s, t.prompt, t.options, by_utility{draft}, ignore).ids() == t.plain.ids());
    }
  };
  CAPTURE(i);
  check(looking);
  check(by_model<Small>{&drafting});
  check(ms::draft::either<lookup, self>{looking, shallow});
  check(ms::draft::either<lookup, by_model<Small>>{looking, {&drafting}});
  check(ms::draft::either<sometimes, ms::draft::either<self, lookup>>{});
}

}  // namespace

TEST_CASE("greedy speculation by every draft is token-identical to plain decoding: reference") {
  for (std::uint64_t i = 0; i < 12; ++i) check_greedy<ms::reference<float>, ms::model<other, ms::reference<double>>>(i);
}
TEST_CASE("greedy speculation by every draft is token-identical to plain decoding: f32 and bf16 on the CPU") {
  for (std::uint64_t i = 0; i < 16; ++i) check_greedy<ms::cpu<float>>(2000 + i);
  for (std::uint64_t i = 0; i < 16; ++i) check_greedy<ms::cpu<ms::bf16>>(3000 + i);
}

TEST_CASE("sampled speculation by every draft has the full model's distribution; accepting everything has not") {
  sampled_model drafting(sampled_shape, ms::seed{12});
  sharpen(drafting);
  const std::vector<int> unlike{3, 1}, repetitive{3, 1, 2, 3, 1};
  const auto check = [](const auto& draft, const std::vector<int>& prompt, ms::sampling options) {
    using D = std::decay_t<decltype(draft)>;
    INFO(draft.name);
    const ms::draft_length::fixed length{.num_speculations = 2};
    int degrees = 0;
    const double exact = chi_square(speculative<D>{draft, length}, options, degrees, prompt, 8000);
    CAPTURE(degrees);
    CHECK(degrees > 10);
    CHECK(exact < quantile(degrees));
    const double wrong = chi_square(speculative<D, always>{draft, length}, options, degrees, prompt, 4000);
    CHECK(wrong > 10 * quantile(degrees));
  };
  const ms::sampling cut{.temperature = 1.5f, .top_k = 4, .top_p = 0.95f};
  check(lookup{}, repetitive, warm);
  check(lookup{}, repetitive, cut);
  check(by_model<sampled_model>{&drafting}, unlike, warm);
  check(by_model<sampled_model>{&drafting}, unlike, cut);
  check(ms::draft::either<lookup, self>{.second = {.exit_layer = 1}}, unlike, warm);
  check(ms::draft::fewer_experts{}, unlike, cut);
  check(self{.exit_layer = 1, .vocabulary = sampled_shape.sizes.vocab / 2}, unlike, warm);
  check(ms::draft::either<lookup, by_model<sampled_model>>{.second = {&drafting}}, repetitive, cut);
}

namespace {

/// Where the longest earlier occurrence of the text's end, the latest of several, is continued; 0: nowhere.
std::size_t searched(const lookup& options, const std::vector<int>& text) {
  for (int n = options.longest_match; n >= options.shortest_match; --n)
    for (int start = int(text.size()) - n - 1; start >= 0; --start)
      if (std::equal(text.end() - n, text.end(), text.begin() + start)) return std::size_t(start + n);
  return 0;
}

}  // namespace

TEST_CASE("lookup finds what a naive search finds, and follows it for the rest of the round") {
  ms::config<small> c{.sizes = tiny_sizes};
  ms::model<small, ms::cpu<float>> m(c);
  ms::session s(m);
  using draft_on = lookup::on<large_session>;
  const int vocab = c.sizes.vocab;
  int found = 0, missed = 0;
  for (std::uint64_t i = 0; i < 600; ++i) {
    const lookup options{.longest_match = random_between(2, 6, i, 0), .shortest_match = random_between(1, 2, i, 1)};
    std::vector<int> text = random_tokens(random_between(1, 20, i, 2), random_between(1, vocab, i, 3), i);
    CAPTURE(i);
    REQUIRE(options.continuation(text) == searched(options, text));

    s.prefill(text);
    draft_on draft(options, s);
    std::vector<float> logits(std::size_t(vocab), 7.f);
    for (int round = 0; round < 2; ++round) {  // the second forgets what the first proposed
      text = s.tokens();
      draft.begin(s, 5);
      std::size_t at = searched(options, text);
      ++(at ? found : missed);
      for (int n = 0; n < 5; ++n) {
        REQUIRE(draft.next(s, text.back(), {logits.data(), vocab}) == (at > 0));
        if (!at) break;
        for (int v = 0; v < vocab; ++v) REQUIRE(logits[std::size_t(v)] == (v == text[at] ? 0.f : -INFINITY));
        const bool otherwise = n == 3;  // a token that was not proposed is searched anew
        text.push_back(otherwise ? (text[at] + 1) % vocab : text[at]);
        at = otherwise ? searched(options, text) : at + 1;
      }
    }
  }
  CHECK(found > 200);
  CHECK(missed > 200);
  CHECK(lookup{}.continuation({}) == 0);
}

namespace {

/// Rounds of one decoder in one session, over several prompts.
template <class V, class B, class Draft> struct conversation {
  using decoder = speculative<Draft>;
  ms::session<V, B> s;
  ms::sampler greedy{ms::sampling{}};
  typename decoder::template on<ms::session<V, B>> rounds;
  conversation(ms::model<V, B>& m, const Draft& draft)
      : s(m), rounds(decoder{.draft = draft, .length = {.num_speculations = 3}}, s) {}

  /// after(drafted, accepted) hears of every round.
  template <class After> std::vector<int> answer(const std::vector<int>& prompt, int tokens, After&& after) {
    s.prefill(prompt);
    std::vector<int> ids;
    while (int(ids.size()) < tokens) {
      const ms::decode_stats before = s.stats;
      rounds.round(s, greedy, tokens - int(ids.size()), [&](const ms::emitted& e) { ids.push_back(e.token); });
      after(s.stats.drafted - before.drafted, s.stats.accepted - before.accepted);
    }
    return ids;
  }
};

/// Prompts that share nothing, a part or all with the one before, and what is left of it after a rejection.
std::vector<std::vector<int>> related_prompts(int vocab) {
  const std::vector<int> a = random_tokens(20, vocab, 1), b = random_tokens(9, vocab, 2);
  std::vector<int> longer = a, forked(a.begin(), a.begin() + 11);
  longer.insert(longer.end(), b.begin(), b.end());
  forked.insert(forked.end(), b.begin(), b.end());
  return {a, a, longer, a, forked, {a[0]}, b, {a.begin(), a.begin() + 5}, longer, {b[0], a[1]}, forked};
}

}  // namespace

// A model that drafts for itself proposes what it will say: a single stale or missing key of its session shows.
TEST_CASE("a model that drafts for itself is never rejected, whatever prompts follow each other") {
  using B = ms::reference<float>;
  for (std::uint64_t i = 0; i < 6; ++i) {
    ms::config<small> c{.sizes = random_sizes(i)};
    c.sizes.vocab = 40;
    ms::model<small, B> m(c, ms::seed{i});
    spread(m);
    CAPTURE(i);
    conversation<small, B, by_model<ms::model<small, B>>> chat(m, {&m});
    int proposed = 0;
    for (const auto& prompt : related_prompts(40)) {
      const auto plain = ms::generate(m, prompt, {.max_new_tokens = 17}, ms::decoder::autoregressive{}, ignore).ids();
      const auto ids = chat.answer(prompt, 17, [&](int drafted, int accepted) {
        CHECK(drafted == accepted);
        proposed += drafted;
      });
      CHECK(ids == plain);
    }
    CHECK(proposed == 11 * 12);  // 4 rounds of 3 and the model's own, and a last one without room to draft
  }
}

TEST_CASE("the second draft takes over exactly in the rounds that the first leaves, and catches up") {
  using B = ms::reference<float>;
  ms::config<small> c{.sizes = tiny_sizes};
  ms::model<small, B> m(c, ms::seed{3});
  spread(m);
  using drafts = ms::draft::either<sometimes, by_model<ms::model<small, B>>>;
  conversation<small, B, drafts> chat(m, {.second = {&m}});
  int round = 0, second = 0;
  for (int prompt = 0; prompt < 4; ++prompt)
    chat.answer(random_tokens(4 + prompt, tiny_sizes.vocab, 9), 20, [&](int drafted, int accepted) {
      const bool firsts = ++round % 2 == 1;  // which ends where it runs dry
      CHECK(drafted - (firsts ? 0 : accepted) <= (firsts ? 1 : 0));
      second += firsts ? 0 : drafted;
    });
  CHECK(second > 20);
}

TEST_CASE("a token knows whose proposal it was, and statistics count what was proposed and kept") {
  ms::config<small> c{.sizes = tiny_sizes, .exits = ms::exits_after(1, 2)};
  ms::model<small, ms::cpu<float>> m(c, ms::seed{4});
  const int L = m.layers();
  const auto generated = [&](const auto& draft, const std::vector<int>& prompt) {
    const speculative<std::decay_t<decltype(draft)>> decoder{.draft = draft, .length = {.num_speculations = 3}};
    const auto out = ms::generate(m, prompt, {.max_new_tokens = 20}, decoder, ignore);
    CHECK(out.stats.tokens == 20);
    CHECK(out.stats.rounds + out.stats.accepted == 20);
    CHECK(out.stats.accepted <= out.stats.drafted);
    CHECK(out.stats.layer_steps == L * (out.stats.rounds + out.stats.drafted));  // nothing runs twice
    for (const ms::emitted& e : out.tokens) CHECK((e.drafted || e.exit_layer == L));
    return out;
  };
  const auto count = [](const ms::generated& out, int exit_layer) {
    return std::count_if(out.tokens.begin(), out.tokens.end(),
                         [&](const ms::emitted& e) { return e.drafted && e.exit_layer == exit_layer; });
  };
  const std::vector<int> prompt{1, 2, 3, 4, 5};
  const auto found = generated(lookup{}, prompt);
  CHECK(found.stats.accepted > 5);  // the greedy text of a random model runs in circles
  CHECK(count(found, 0) == found.stats.accepted);

  const auto own = generated(by_model<ms::model<small, ms::cpu<float>>>{&m}, prompt);
  CHECK(own.stats.acceptance_rate() == 1);
  CHECK(count(own, 0) == 15);

  const auto both = generated(ms::draft::either<lookup, self>{.second = {.exit_layer = 2}}, prompt);
  CHECK(count(both, 0) > 0);
  CHECK(count(both, 2) > 0);
  CHECK(count(both, 0) + count(both, 2) == both.stats.accepted);

  const auto never = generated(lookup{.longest_match = 30, .shortest_match = 30}, prompt);
  CHECK(never.stats.drafted == 0);
  CHECK(never.stats.rounds == 20);
}

TEST_CASE("typical acceptance: its rule, exact when greedy, lossy when sampled") {
  const ms::acceptance::typical rule;
  const std::vector<float> flat(20, 0.05f), peaked{0.7f, 0.2f, 0.08f, 0.02f};
  const auto accepts = [](const auto& r, const std::vector<float>& p, int token) {
    return r.template accepts<float>({p.data(), p.size()}, {}, token, 0.999);
  };
  // e^-H is 1/20 for the flat one and 0.44 for the other: a share of 0.09 is 0.0045 and 0.039.
  CHECK(accepts(rule, flat, 7));
  CHECK(accepts(rule, peaked, 2));
  CHECK_FALSE(accepts(rule, peaked, 3));
  CHECK(accepts(ms::acceptance::typical{.epsilon = 0.01f}, peaked, 3));
  CHECK_FALSE(accepts(ms::acceptance::typical{.delta = 0.5f}, peaked, 1));
  for (std::uint64_t i = 0; i < 200; ++i) {
    std::vector<float> p = random_values<float>(random_between(1, 50, i, 0), i);
    double total = 0;
    for (float& x : p) total += x = std::exp(4 * x);
    for (float& x : p) x = float(x / total);
    const int best = ms::argmax<float>({p.data(), p.size()});
    CHECK(accepts(ms::acceptance::typical{.epsilon = 0.99f, .delta = 0.99f}, p, best));
  }
  std::vector<float> rest(4);
  rule.residual<float>({rest.data(), 4}, {peaked.data(), 4}, {flat.data(), 4});
  CHECK(rest == peaked);

  const std::vector<int> prompt{1, 2};
  using lossy = speculative<self, ms::acceptance::typical>;
  for (std::uint64_t i = 0; i < 20; ++i) {
    ms::model<small, ms::cpu<float>> m(random_config<small>(i), ms::seed{i});
    const ms::generation options{.max_new_tokens = 30};
    const auto plain = ms::generate(m, prompt, options, ms::decoder::autoregressive{}, ignore).ids();
    CHECK(ms::generate(m, prompt, options, lossy{.draft = {.exit_layer = 1}}, ignore).ids() == plain);
  }
  int degrees = 0;
  const double statistic = chi_square(lossy{.draft = {.exit_layer = 1}}, warm, degrees, {3, 1}, 8000);
  CHECK(statistic > 10 * quantile(degrees));
}

TEST_CASE("drafts and acceptances that cannot work are refused") {
  using model = ms::model<small, ms::cpu<float>>;
  ms::config<small> c{.sizes = tiny_sizes};
  model m(c), drafting(c);
  const auto refuses = [&](const auto& decoder, const char* message) {
    CHECK_THROWS_WITH_AS(ms::generate(m, std::vector<int>{1}, {.max_new_tokens = 1}, decoder, ignore), message,
                         ms::config_error);
  };
  refuses(speculative<lookup>{.draft = {.shortest_match = 0}},
          "lookup.shortest_match must be at least 1, got matches of 0 to 3 tokens");
  refuses(speculative<lookup>{.draft = {.longest_match = 2, .shortest_match = 3}},
          "lookup.longest_match must be at least lookup.shortest_match, got matches of 3 to 2 tokens");
  refuses(speculative<by_model<model>>{}, "small_model.model is null: expected a model that drafts");
  ms::config<small> wrong = c;
  wrong.sizes.vocab = 18;
  model other_vocabulary(wrong);
  refuses(speculative<by_model<model>>{.draft = {&other_vocabulary}},
          "small_model.model has another vocabulary than the model it drafts for: expected 17 tokens, got 18");
  wrong = c, wrong.sizes.context = 31;
  model shorter(wrong);
  refuses(speculative<by_model<model>>{.draft = {&shorter}},
          "small_model.model has a shorter context than the model it drafts for: expected at least 32 tokens, got 31");
  refuses(speculative<ms::draft::either<lookup, by_model<model>>>{},
          "small_model.model is null: expected a model that drafts");
  for (const float none : {0.f, 1.f, -1.f, NAN}) {
    refuses(
        speculative<self, ms::acceptance::typical>{.acceptance = {.epsilon = none}},
        "typical.epsilon must be between 0 and 1, both excluded: the speculative decoder cannot use this acceptance");
    refuses(speculative<self, ms::acceptance::typical>{.acceptance = {.delta = none}},
            "typical.delta must be between 0 and 1, both excluded: the speculative decoder cannot use this acceptance");
  }
}

TEST_CASE("with fewer experts, a token visits its best ones, and their gates add up as before") {
  // A model whose second expert of each token changes nothing drafts perfectly with the first alone.
  struct one_of_two : ms::variant {
    using router = ms::router::top_k<2>;
  };
  ms::config<one_of_two> c{.sizes = tiny_sizes};
  c.sizes.moe_every = 1;
  ms::model<one_of_two, ms::cpu<float>> m(c, ms::seed{4});
  ms::session s(m);
  const std::vector<int> prompt = random_tokens(10, c.sizes.vocab, 3);
  using decoder = speculative<ms::draft::fewer_experts>;
  const auto run = [&](int experts) {
    return ms::generate(s, prompt, {.max_new_tokens = 20}, decoder{{.experts = experts}, {.num_speculations = 3}},
                        ignore);
  };
  const auto all = run(2), one = run(1);
  CHECK(all.stats.acceptance_rate() == 1);  // with all its experts the draft is the model
  CHECK(one.ids() == all.ids());
  CHECK(one.stats.drafted > 0);
  // All experts of a layer alike: which are visited makes no difference, so long as the gates add up.
  for (const ms::tensor_info& t : m.tensors())
    for (const char* part : {"gate_proj", "up_proj", "down_proj"})
      if (t.name.find("mlp.experts.") != std::string::npos && t.name.find(part) != std::string::npos &&
          t.name.find("experts.0.") == std::string::npos)
        for (const ms::tensor_info& first : m.tensors()) {
          const std::size_t at = t.name.find("experts.") + 8;
          std::string name = t.name;
          name.replace(at, name.find('.', at) - at, "0");
          if (first.name == name) std::copy_n(m.block().data() + first.offset, t.size, m.block().data() + t.offset);
        }
  CHECK(run(1).stats.acceptance_rate() == 1);
  CHECK_THROWS_AS(run(0), ms::config_error);
}

TEST_CASE("a draft of a reduced vocabulary proposes its first ids only, and refuses numbers that mean nothing") {
  ms::model<small, ms::cpu<float>> m(random_config<small>(9), ms::seed{4});
  spread(m);
  ms::session s(m);
  const std::vector<int> prompt = random_tokens(10, m.sizes().vocab, 3);
  using decoder = speculative<self>;
  const auto run = [&](int vocabulary, int length) {
    const decoder d{{.exit_layer = 1, .vocabulary = vocabulary}, {.num_speculations = length}};
    return ms::generate(s, prompt, {.max_new_tokens = 30, .sampling = warm}, d, ignore);
  };
  for (const ms::emitted& e : run(2, 4).tokens)
    if (e.drafted) CHECK(e.token < 2);
  CHECK(run(0, 4).ids() == run(m.sizes().vocab, 4).ids());
  CHECK_THROWS_AS(run(-1, 4), ms::config_error);
  CHECK_THROWS_AS(run(m.sizes().vocab + 1, 4), ms::config_error);
}
