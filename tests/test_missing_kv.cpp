// What early exit leaves behind in the layers that it skips: recompute against an oracle that runs every layer, bit for
// bit; copies as copies; sessions that other decoders continue.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "tiny.hpp"

using namespace tests;
namespace rule = ms::exit_rule;
namespace missing = ms::missing_kv;

namespace {

struct small : ms::variant {};
struct following : ms::variant {
  using router = ms::router::sticky<ms::router::top_k<2>>;
};
constexpr ms::sizes sizes{
    .layers = 6, .dim = 24, .heads = 4, .kv_heads = 2, .ffn = 16, .experts = 4, .vocab = 11, .context = 64};
const auto ignore = [](const ms::emitted&) {};
const std::vector<int> prompt{1, 2, 3};

template <class V, class B> ms::model<V, B> sharp() {
  ms::model<V, B> m({.sizes = sizes, .exits = ms::exits_after(1, 2, 4)}, ms::seed{5});
  for (auto& w : m.block()) w = ms::weight_t<B>(float(w) * 1.5f);
  return m;
}

/// Leaves where a hash of position and exit says so: depths of every kind follow each other.
struct chance {
  static constexpr std::string_view name = "chance";
  static constexpr bool reads_logits = false, reads_streams = false;
  using state = rule::no_state;
  std::uint64_t seed = 1;
  double share = 0.5;

  template <class T> bool leaves(const ms::exit_evidence<T>& seen, state&) const {
    return ms::draws{{seed}, ms::stream::user}.uniform_double(std::uint64_t(seen.position),
                                                              std::uint64_t(seen.exit_layer)) < share;
  }
};

/// Every token through all layers; the first exit at which the rule fires speaks.
template <class Session, class Rule>
std::vector<ms::emitted> oracle(Session& s, const Rule& r, int tokens, std::span<const int> start = prompt) {
  using T = typename Session::T;
  std::vector<ms::emitted> out;
  s.prefill(start);
  const auto scope = s.memory().scope();
  const auto x = s.memory().template take<T>(1, sizes.dim), logits = s.memory().template take<T>(1, sizes.vocab);
  const auto before = s.memory().template take<T>(sizes.dim);
  for (int t = 0; t < tokens; ++t) {
    const int at = s.position();
    typename Rule::state state{};
    s.embed(x);
    int depth = 0, exit = 0, token = 0;
    for (const int e : {1, 2, 4, 6}) {
      std::copy(x.begin(), x.end(), before.begin());
      s.run(depth, e, x, at);
      if (exit == 0) {
        s.logits(logits, x, e);
        ms::exit_evidence<T> seen{.logits = logits.row(0), .stream = x.row(0), .exit_layer = e, .position = at};
        if (depth > 0) seen.previous_stream = before;
        if (e == 6 || r.template leaves<T>(seen, state)) exit = e, token = ms::argmax<T>(logits.row(0));
      }
      depth = e;
    }
    s.push(token);
    out.push_back({token, exit, false});
  }
  return out;
}

bool same(const std::vector<ms::emitted>& a, const std::vector<ms::emitted>& b) {
  return std::ranges::equal(a, b, [](const ms::emitted& x, const ms::emitted& y) {
    return x.token == y.token && x.exit_layer == y.exit_layer;
  });
}

/// The same keys, values and chosen experts at all positions before the pending token's.
template <class Session> bool same_memory(Session& a, Session& b) {
  REQUIRE(a.position() == b.position());
  const auto equal = [&](const auto& x, const auto& y) {
    return std::memcmp(x.data(), y.data(), std::size_t(a.position() * x.cols()) * sizeof(*x.data())) == 0;
  };
  for (int l = 0; l < sizes.layers; ++l) {
    const auto p = a.keys_values(l), q = b.keys_values(l);
    if (!equal(p.keys, q.keys) || !equal(p.values, q.values)) return false;
    if (p.experts.size() && !equal(p.experts, q.experts)) return false;
  }
  return true;
}

template <class Rule, class MissingKV> auto with(const Rule& r, const MissingKV& kv) {
  return ms::decoder::early_exit<Rule, MissingKV>{.rule = r, .missing = kv};
}

/// Text, exits, and what the session remembers are the oracle's, bit for bit.
template <class V, class B, class Rule> void check_exact(const Rule& r, int max_pending, int tokens = 50) {
  CAPTURE(Rule::name);
  CAPTURE(max_pending);
  auto m = sharp<V, B>();
  ms::session<V, B> s(m), t(m);
  const auto want = oracle(t, r, tokens);
  const auto got =
      ms::generate(s, prompt, {.max_new_tokens = tokens}, with(r, missing::recompute{max_pending}), ignore);
  CHECK(same(got.tokens, want));
  CHECK(same_memory(s, t));
  CHECK(got.stats.layer_steps == sizes.layers * tokens);  // nothing twice, nothing left out
}

template <class V, class B> void check_all_rules() {
  for (const int max_pending : {1, 2, 5, 15}) {
    check_exact<V, B>(rule::max_probability{.threshold = 0.45f}, max_pending);
    check_exact<V, B>(rule::margin{.threshold = 0.2f}, max_pending);
    check_exact<V, B>(rule::cosine{.threshold = 0.5f}, max_pending);
    check_exact<V, B>(rule::patience{.exits = 2}, max_pending);
    check_exact<V, B>(rule::fixed{.exit_layer = 2}, max_pending);
    for (std::uint64_t seed = 0; seed < 5; ++seed) check_exact<V, B>(chance{seed, 0.5}, max_pending);
    check_exact<V, B>(chance{9, 0.9}, max_pending);
  }
}

}  // namespace

TEST_CASE_TEMPLATE("recompute: exits and memory are those of running every token through all layers", B, ms::cpu<float>,
                   ms::cpu<ms::bf16>, ms::reference<float>) {
  check_all_rules<small, B>();
}

TEST_CASE("recompute: a router that follows the token before chooses as if no layer had been skipped") {
  check_all_rules<following, ms::cpu<float>>();
}

TEST_CASE("recompute: more pending tokens than the context or one call hold") {
  check_exact<small, ms::cpu<float>>(rule::fixed{.exit_layer = 1}, 20);
  check_exact<small, ms::cpu<float>>(rule::fixed{.exit_layer = 1}, 2147483647);
  check_exact<small, ms::cpu<float>>(chance{3, 0.8}, 40);
}

TEST_CASE_TEMPLATE("a rule that never fires gives plain decoding, whatever becomes of missing keys and values", KV,
                   missing::propagate, missing::recompute, missing::copy) {
  auto m = sharp<small, ms::cpu<float>>();
  ms::session<small, ms::cpu<float>> s(m), t(m);
  const ms::generation options{.max_new_tokens = 50};
  const auto plain = ms::generate(t, prompt, options, ms::decoder::autoregressive{}, ignore);
  const auto never = ms::generate(s, prompt, options, with(rule::max_probability{.threshold = 2}, KV{}), ignore);
  CHECK(same(never.tokens, plain.tokens));
  CHECK(same_memory(s, t));
}

TEST_CASE("keys and values that are propagated or copied are others, and the text shows it") {
  auto m = sharp<small, ms::cpu<float>>();
  ms::session<small, ms::cpu<float>> exact(m), s(m);
  const auto want = oracle(exact, chance{1, 0.5}, 50);
  const auto check = [&](const auto& kv) {
    const auto got = ms::generate(s, prompt, {.max_new_tokens = 50}, with(chance{1, 0.5}, kv), ignore);
    CHECK_FALSE(same(got.tokens, want));
    CHECK_FALSE(same_memory(s, exact));
    CHECK(got.stats.layer_steps < 6 * 50);
  };
  check(missing::propagate{}), check(missing::copy{});
}

TEST_CASE("copy: skipped layers hold the vectors of the last one that ran, and no experts") {
  auto m = sharp<following, ms::cpu<float>>();
  ms::session<following, ms::cpu<float>> s(m);
  const auto out =
      ms::generate(s, prompt, {.max_new_tokens = 12}, with(rule::fixed{.exit_layer = 2}, missing::copy{}), ignore);
  const auto from = s.keys_values(1), below = s.keys_values(0);
  const auto same_row = [](ms::vec<float> a, ms::vec<float> b) { return std::ranges::equal(a, b); };
  for (int at = 2; at < s.position(); ++at) {
    CHECK_FALSE(same_row(from.keys.plane(0).row(at), below.keys.plane(0).row(at)));
    CHECK(from.experts.plane(0)(at, 0) >= 0);
    for (int l = 2; l < 6; ++l) {
      CHECK(same_row(s.keys_values(l).keys.plane(0).row(at), from.keys.plane(0).row(at)));
      CHECK(same_row(s.keys_values(l).values.plane(0).row(at), from.values.plane(0).row(at)));
      CHECK(s.keys_values(l).experts.plane(0)(at, 0) == -1);
    }
  }
}

TEST_CASE("a session goes on with another decoder where early exit ended") {
  auto m = sharp<small, ms::cpu<float>>();
  using session = ms::session<small, ms::cpu<float>>;
  const chance at_random{4, 0.7};
  for (int taken = 1; taken < 24; ++taken) {
    CAPTURE(taken);
    session s(m), t(m);
    int seen = 0;
    ms::generate(s, prompt, {.max_new_tokens = 40}, with(at_random, missing::recompute{}),
                 [&](const ms::emitted&) { return ++seen < taken; });
    oracle(t, at_random, taken);
    CHECK(s.tokens() == t.tokens());
    CHECK(same_memory(s, t));
    ms::sampler greedy({});
    ms::decoder::autoregressive::on<session> one({}, s), other({}, t);
    for (int i = 0; i < 10; ++i) one.round(s, greedy, 1, ignore), other.round(t, greedy, 1, ignore);
    CHECK(s.tokens() == t.tokens());
    CHECK(same_memory(s, t));
  }
}

/// Stands in for a session and writes down which layers run, for how many tokens, from which position.
struct call {
  int first, last, rows, at;
  friend bool operator==(const call&, const call&) = default;
};
struct recording {
  using T = float;
  using model_type = ms::model<small, ms::cpu<float>>;
  std::vector<call> calls{};
  model_type& m;

  auto& model() { return m; }
  int context() const { return 64; }
  void run(int first, int last, ms::mat<float> x, int at) { calls.push_back({first, last, int(x.rows()), at}); }
};

TEST_CASE("recompute: which layers run for how many tokens") {
  auto m = sharp<small, ms::cpu<float>>();
  recording s{.m = m};
  missing::recompute::on<recording> kv({}, s);
  const auto token = [&](int at, std::vector<int> exits) {
    int depth = 0;
    for (const int e : exits) kv.run(s, depth, e, kv.stream(s), at), depth = e;
    kv.left(s, depth, kv.stream(s), at);
    return std::exchange(s.calls, {});
  };
  using calls = std::vector<call>;
  CHECK(token(10, {1, 2, 4}) == calls{{0, 1, 1, 10}, {1, 2, 1, 10}, {2, 4, 1, 10}});
  CHECK(token(11, {1, 2, 4}) == calls{{0, 1, 1, 11}, {1, 2, 1, 11}, {2, 4, 1, 11}});
  CHECK(token(12, {1, 2}) == calls{{0, 1, 1, 12}, {1, 2, 1, 12}});
  CHECK(token(13, {2, 6}) == calls{{0, 2, 1, 13}, {2, 4, 2, 12}, {4, 6, 4, 10}});
  CHECK(token(14, {6}) == calls{{0, 6, 1, 14}});
  CHECK(token(15, {1}) == calls{{0, 1, 1, 15}});
  CHECK(token(16, {2}) == calls{{0, 1, 1, 16}, {1, 2, 2, 15}});
  kv.finish(s), kv.finish(s);
  CHECK(s.calls == calls{{2, 6, 2, 15}});
}

TEST_CASE("recompute: a max_pending that means nothing") {
  auto m = sharp<small, ms::cpu<float>>();
  CHECK_THROWS_WITH_AS(ms::generate(m, prompt, {.max_new_tokens = 4}, with(chance{}, missing::recompute{0}), ignore),
                       "recompute.max_pending must be at least 1, got 0", ms::config_error);
}
