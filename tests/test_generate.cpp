// Generation as its users meet it: endings, streaming, early exit, sessions used again, and what is refused.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <numeric>

#include "moeskip/model/checkpoint.hpp"
#include "tiny.hpp"

using namespace tests;

namespace own_policies {

/// Has a number, and no `fields`.
struct secretive_router : ms::router::top_k<2> {
  static constexpr std::string_view name = "secretive";
  float temperature = 1;
  template <class Self, class F> static constexpr void fields(Self&, F&&) = delete;
  friend bool operator==(const secretive_router&, const secretive_router&) = default;
};
struct secretive : ms::variant {
  using router = secretive_router;
};

/// Lists one of its two numbers.
struct forgetful_router : ms::router::top_k<2> {
  static constexpr std::string_view name = "forgetful";
  float temperature = 1;
  int unlisted = 0;
  template <class Self, class F> static constexpr void fields(Self& self, F&& f) { f("temperature", self.temperature); }
  friend bool operator==(const forgetful_router&, const forgetful_router&) = default;
};
struct forgetful : ms::variant {
  using router = forgetful_router;
};

}  // namespace own_policies
using namespace own_policies;

namespace {

struct small : ms::variant {};
struct own_heads : ms::variant {
  using exit_head = ms::exit_head::own;
};
using B = ms::cpu<float>;

constexpr ms::config<small> shape{
    .sizes = {.layers = 4, .dim = 24, .heads = 4, .kv_heads = 2, .ffn = 16, .experts = 4, .vocab = 11, .context = 40},
    .exits = ms::exits_after(1, 2)};
const auto ignore = [](const ms::emitted&) {};
const std::vector<int> prompt{1, 2, 3};

/// A model whose weights are all multiplied: its exits disagree, its probabilities spread.
ms::model<small, B> sharp() {
  ms::model<small, B> m(shape, ms::seed{5});
  for (float& w : m.block()) w *= 1.5f;
  return m;
}

/// All tokens through the model in one call: their keys and values, and logits (N, V).
struct one_pass {
  ms::arena memory;
  ms::kv_cache<double> kv;
  ms::mat<double> logits;

  one_pass(ms::model<small, ms::reference<double>>& m, const std::vector<int>& tokens)
      : kv(m.layers(), 1, m.sizes().context, m.sizes().kv_groups() * m.sizes().head_size()) {
    const int N = int(tokens.size());
    ms::no_tape nothing(memory);
    ms::mat<double> x = memory.take<double>(N, m.sizes().dim), normed = memory.take<double>(N, m.sizes().dim);
    logits = memory.take<double>(N, m.sizes().vocab);
    m.embed(x, {tokens.data(), N});
    x = m.run_layers(0, m.layers(), x, kv, ms::batch_rows(1, N, memory), nothing);
    m.head(logits, normed, x, m.layers());
  }
};

/// The first positions of slot 0 of keys or values (S, C, G·d), as one vector.
template <class T> ms::vec<T> first_rows(ms::cube<T> keys, int positions) {
  return {keys.data(), positions * keys.cols()};
}

/// The largest difference between two vectors of the same size.
template <class A, class C> double distance(ms::vec<A> a, ms::vec<C> b) {
  REQUIRE(a.size() == b.size());
  double worst = 0;
  for (ms::index_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(double(a[i]) - double(b[i]));
    if (!(difference <= worst)) worst = difference;  // NaN too
  }
  return worst;
}

}  // namespace

TEST_CASE("the ways a generation ends") {
  auto m = sharp();
  const auto all = ms::generate(m, prompt, {.max_new_tokens = 9});
  CHECK(all.tokens.size() == 9);
  CHECK(all.reason == ms::finish::length);
  const auto full = ms::generate(m, prompt, {});
  CHECK(int(full.tokens.size()) == 40 - 3 + 1);
  CHECK(full.reason == ms::finish::context_full);
  CHECK(ms::describe(full.reason) == "the context is full");
  const int stop = all.tokens[4].token;
  const auto stopped = ms::generate(m, prompt, {.max_new_tokens = 9, .stop = {stop}});
  CHECK(stopped.reason == ms::finish::stop_token);
  CHECK(stopped.tokens.back().token == stop);
  const auto first = std::find_if(all.tokens.begin(), all.tokens.end(), [&](const auto& e) { return e.token == stop; });
  CHECK(std::ptrdiff_t(stopped.tokens.size()) == first - all.tokens.begin() + 1);
  int seen = 0;
  const auto cancelled = ms::generate(m, prompt, {.max_new_tokens = 9}, [&](const ms::emitted&) { return ++seen < 3; });
  CHECK(cancelled.reason == ms::finish::cancelled);
  CHECK(cancelled.tokens.size() == 3);
  CHECK(seen == 3);
}

TEST_CASE("a session is as good as new after a cancelled or failed generation") {
  auto m = sharp();
  ms::session<small, B> s(m);
  const ms::generation options{.max_new_tokens = 12};
  const auto fresh = ms::generate(m, prompt, options, ms::decoder::autoregressive{}, ignore).ids();
  ms::generate(s, prompt, options, small::decoder{}, [](const ms::emitted&) { return false; });
  CHECK_THROWS(
      ms::generate(s, prompt, options, small::decoder{}, [](const ms::emitted&) { throw std::runtime_error("sink"); }));
  CHECK_THROWS(ms::generate(s, std::vector<int>{1, 99}, options, small::decoder{}, ignore));
  CHECK(ms::generate(s, prompt, options, small::decoder{}, ignore).ids() == fresh);
  CHECK(ms::generate(s, prompt, options, ms::decoder::autoregressive{}, ignore).ids() == fresh);
}

TEST_CASE("prompts longer than a prefill chunk give the same text by every decoder") {
  ms::config<small> c = shape;
  c.sizes.context = 400;
  ms::model<small, B> m(c, ms::seed{6});
  const std::vector<int> long_prompt = random_tokens(300, 11, 1);
  const ms::generation options{.max_new_tokens = 30};
  CHECK(ms::generate(m, long_prompt, options, ms::decoder::autoregressive{}, ignore).ids() ==
        ms::generate(m, long_prompt, options, ignore).ids());
}

TEST_CASE("early exit: a threshold above one runs every layer, one near zero leaves at the first exit") {
  auto m = sharp();
  const ms::generation options{.max_new_tokens = 20};
  const auto plain = ms::generate(m, prompt, options, ms::decoder::autoregressive{}, ignore);
  const auto never = ms::generate(m, prompt, options, ms::decoder::early_exit<>{.rule = {.threshold = 1.1f}}, ignore);
  CHECK(never.ids() == plain.ids());
  CHECK(std::all_of(never.tokens.begin(), never.tokens.end(), [](const auto& e) { return e.exit_layer == 4; }));
  const auto always = ms::generate(m, prompt, options, ms::decoder::early_exit<>{.rule = {.threshold = 1e-6f}}, ignore);
  CHECK(std::all_of(always.tokens.begin(), always.tokens.end(), [](const auto& e) { return e.exit_layer == 1; }));
  CHECK(always.stats.layer_steps == 20);
  const auto some = ms::generate(m, prompt, options, ms::decoder::early_exit<>{.rule = {.threshold = 0.5f}}, ignore);
  CHECK(some.stats.layer_steps > 20);
  CHECK(some.stats.layer_steps < 80);
}

TEST_CASE_TEMPLATE("a prefill in chunks and a step are one pass over all tokens", Back, ms::reference<double>, B) {
  ms::config<small> c = shape;
  c.sizes.context = 320;
  ms::model<small, Back> m(c, ms::seed{6});
  ms::model<small, ms::reference<double>> oracle(c, ms::seed{6});
  for (auto& w : m.block()) w *= 1.5f;
  for (double& w : oracle.block()) w *= 1.5;
  const std::vector<int> tokens = random_tokens(300, 11, 2);
  ms::session s(m);
  s.prefill(tokens);
  CHECK(s.position() == 299);
  using T = typename ms::session<small, Back>::T;
  auto x = s.memory().template take<T>(1, 24), logits = s.memory().template take<T>(1, 11);
  s.embed(x), s.run(0, 4, x, s.position()), s.logits(logits, x, 4);

  one_pass whole(oracle, tokens);
  const double error = std::is_same_v<T, double> ? 1e-9 : 1e-4;
  CHECK(distance(logits.row(0), whole.logits.row(299)) < error);
  for (int l = 0; l < 4; ++l) {  // positions 0 … 299 stand one behind the other
    const auto got = s.keys_values(l);
    const auto want = whole.kv.layer(l);
    CHECK(distance(first_rows(got.keys, 300), first_rows(want.keys, 300)) < error);
    CHECK(distance(first_rows(got.values, 300), first_rows(want.values, 300)) < error);
  }
}

TEST_CASE_TEMPLATE("early exit fills the skipped layers' keys and values from the exit state", Back,
                   ms::reference<double>, B) {
  ms::model<small, Back> m(shape, ms::seed{5});
  ms::model<small, ms::reference<double>> oracle(shape, ms::seed{5});
  for (auto& w : m.block()) w *= 1.5f;
  for (double& w : oracle.block()) w *= 1.5;
  using T = typename ms::session<small, Back>::T;
  ms::session s(m);
  const auto out =
      ms::generate(s, prompt, {.max_new_tokens = 6}, ms::decoder::early_exit<>{.rule = {.threshold = 1e-6f}}, ignore);
  for (const ms::emitted& e : out.tokens) REQUIRE(e.exit_layer == 1);
  REQUIRE(s.position() == 8);  // the prompt's last token at 2 was the first to leave early, then those up to 7

  // The same keys and values by hand: full depth for the prompt but its last token; after that the first layer, and
  // the projections of layers 2 to 4 applied to what it gave.
  ms::arena memory;
  ms::no_tape nothing(memory);
  ms::kv_cache<double> filled(4, 1, 40, 12), unfilled(4, 1, 40, 12);
  const auto rows = [&](int first, int count) {
    ms::token_rows r = ms::batch_rows(1, 40, memory);
    return r.rows(first, count);
  };
  const auto embedded = [&](int first, int count) {
    ms::mat<double> x = memory.take<double>(count, 24);
    oracle.embed(x, {s.tokens().data() + first, count});
    return x;
  };
  for (ms::kv_cache<double>* kv : {&filled, &unfilled}) {
    oracle.run_layers(0, 4, embedded(0, 2), *kv, rows(0, 2), nothing);
    for (int at = 2; at < 8; ++at) {
      const ms::mat<double> x = oracle.run_layers(0, 1, embedded(at, 1), *kv, rows(at, 1), nothing);
      if (kv == &unfilled) continue;
      for (int l = 1; l < 4; ++l) {
        const auto& w = oracle.weights().layers[std::size_t(l)].attention;
        ms::mat<double> h = memory.take<double>(1, 24), projected = memory.take<double>(1, 24);
        ms::norm_linear(oracle.backend(), projected, h, x, w.norm, w.kv(), shape.sizes.norm_eps);
        ms::rope_append(oracle.backend(), {}, kv->layer(l), projected, rows(at, 1), shape.sizes.attention());
      }
    }
  }
  const double error = std::is_same_v<T, double> ? 1e-12 : 1e-4;
  for (int l = 0; l < 4; ++l) {
    const auto got = s.keys_values(l);
    CHECK(distance(first_rows(got.keys, 8), first_rows(filled.layer(l).keys, 8)) < error);
    CHECK(distance(first_rows(got.values, 8), first_rows(filled.layer(l).values, 8)) < error);
  }

  // What the next token sees of it, and that it would see something else had the layers been left empty.
  auto x = s.memory().template take<T>(1, 24), logits = s.memory().template take<T>(1, 11);
  s.embed(x), s.run(0, 4, x, 8), s.logits(logits, x, 4);
  const auto by_hand = [&](ms::kv_cache<double>& kv) {
    const ms::mat<double> y = oracle.run_layers(0, 4, embedded(8, 1), kv, rows(8, 1), nothing);
    ms::mat<double> normed = memory.take<double>(1, 24), out_logits = memory.take<double>(1, 11);
    oracle.head(out_logits, normed, y, 4);
    return out_logits.row(0);
  };
  CHECK(distance(logits.row(0), by_hand(filled)) < error);
  CHECK(distance(logits.row(0), by_hand(unfilled)) > 0.1);
}

/// The same model with layers 3 and 4 that add nothing: every token drafted after layer 2 is accepted.
ms::model<small, B> echo() {
  auto m = sharp();
  for (int l = 2; l < 4; ++l)
    for (const ms::tensor_info& t : m.tensors())
      if (t.name.starts_with(ms::text("model.layers.", l)) && t.start == ms::initial::residual)
        std::fill_n(m.block().data() + t.offset, t.size, 0.f);
  return m;
}

TEST_CASE("a session keeps the tokens that were taken, and the statistics count no others") {
  auto m = echo();
  ms::session<small, B> s(m);
  const fixed_length decoder{.draft = {.exit_layer = 2}, .length = {.num_speculations = 6}};
  const auto check = [&](const ms::generated& out) {
    std::vector<int> expected = prompt;
    for (const int id : out.ids()) expected.push_back(id);
    CHECK(s.tokens() == expected);
    CHECK(s.pending() == expected.back());
    int drafted = 0;
    for (const auto& e : out.tokens) drafted += e.drafted;
    CHECK(out.stats.accepted == drafted);
    CHECK(s.stats.accepted == drafted);
    CHECK(std::accumulate(s.stats.accepted_at.begin(), s.stats.accepted_at.end(), 0) == drafted);
  };
  const auto whole = ms::generate(s, prompt, {.max_new_tokens = 20}, decoder, ignore);
  check(whole);
  CHECK(whole.stats.accepted > 12);
  for (int taken = 1; taken < 9; ++taken) {
    int seen = 0;
    const auto cancelled =
        ms::generate(s, prompt, {.max_new_tokens = 20}, decoder, [&](const ms::emitted&) { return ++seen < taken; });
    CHECK(int(cancelled.tokens.size()) == taken);
    check(cancelled);
  }
  for (int stop = 0; stop < 11; ++stop)
    check(ms::generate(s, prompt, {.max_new_tokens = 20, .stop = {stop}}, decoder, ignore));
}

TEST_CASE("the default draft leaves at the deepest exit at half depth or earlier, or says that there is none") {
  ms::sizes deep = shape.sizes;
  deep.layers = 8;
  const auto drafted_at = []<class V>(const ms::config<V>& c) {
    ms::model<V, B> m(c, ms::seed{1});
    ms::session<V, B> s(m);
    return typename ms::draft::self::template on<ms::session<V, B>>({}, s).exit_layer();
  };
  CHECK(drafted_at(ms::config<own_heads>{.sizes = deep, .exits = ms::exits_after(2, 3, 5)}) == 3);
  CHECK(drafted_at(ms::config<own_heads>{.sizes = deep, .exits = ms::exits_after(1, 6)}) == 1);
  CHECK(drafted_at(ms::config<small>{.sizes = deep, .exits = ms::exits_after(2, 6)}) == 2);
  CHECK(drafted_at(ms::config<small>{.sizes = deep}) == 4);
  const auto refused = []<class V>(const ms::config<V>& c) {
    ms::model<V, B> m(c, ms::seed{1});
    CHECK_THROWS_WITH_AS(
        ms::generate(m, prompt, {.max_new_tokens = 4}),
        "this model has no exit at half depth or earlier to draft from: give it one (config.exits), or "
        "decode with ms::decoder::autoregressive",
        ms::config_error);
    CHECK(ms::generate(m, prompt, {.max_new_tokens = 4}, ms::decoder::autoregressive{}, ignore).tokens.size() == 4);
  };
  refused(ms::config<own_heads>{.sizes = deep});
  refused(ms::config<own_heads>{.sizes = deep, .exits = ms::exits_after(6)});
  deep.layers = 1;
  refused(ms::config<small>{.sizes = deep});
}

TEST_CASE("thresholds of early exit that mean nothing") {
  auto m = sharp();
  for (const float threshold : {0.f, -1.f, std::nanf(""), INFINITY})
    CHECK_THROWS_WITH_AS(ms::generate(m, prompt, {.max_new_tokens = 4},
                                      ms::decoder::early_exit<>{.rule = {.threshold = threshold}}, ignore),
                         doctest::Contains("max_probability.threshold must be above 0 and finite"), ms::config_error);
}

TEST_CASE("a session driven by hand where there is nothing") {
  auto m = sharp();
  ms::session<small, B> s(m);
  CHECK_THROWS_WITH_AS(s.pending(), "the session is empty: prefill a prompt first", ms::config_error);
  s.prefill(prompt);
  auto x = s.memory().take<float>(1, 24);
  s.embed(x, 1, 0);
  const auto refused = [&](int first, int last, int at, const char* message) {
    CHECK_THROWS_WITH_AS(s.run(first, last, x, at), message, ms::config_error);
  };
  refused(0, 5, 2, "layers [0, 5) are not in this model of 4 layers");
  refused(-1, 4, 2, "layers [-1, 4) are not in this model of 4 layers");
  refused(3, 2, 2, "layers [3, 2) are not in this model of 4 layers");
  refused(0, 4, -1, "positions must be 0 or more, got -1");
  refused(0, 4, 2147483647, "the context of 40 tokens is exhausted: position 2147483647 is beyond it");
  CHECK_THROWS_AS(s.propagate(5, x, 2), ms::config_error);
  CHECK_THROWS_AS(s.propagate(-1, x, 2), ms::config_error);
  ms::no_tape nothing(s.memory());
  ms::kv_cache<float> kv(4, 1, 40, 12);
  CHECK_THROWS_WITH_AS(m.run_layers(0, 6, x, kv, ms::batch_rows(1, 1, s.memory()), nothing),
                       "layers [0, 6) are not in this model of 4 layers", ms::config_error);
  CHECK_NOTHROW(s.run(4, 4, x, 2));
}

TEST_CASE("a session goes on from its own tokens") {
  auto m = sharp();
  ms::session<small, B> s(m);
  const auto whole = ms::generate(s, prompt, {.max_new_tokens = 20}, ms::decoder::autoregressive{}, ignore).ids();
  auto parts = ms::generate(s, prompt, {.max_new_tokens = 8}, small::decoder{}, ignore).ids();
  for (const int id : ms::generate(s, s.tokens(), {.max_new_tokens = 12}, small::decoder{}, ignore).ids())
    parts.push_back(id);
  CHECK(parts == whole);
}

TEST_CASE("statistics of speculation add up") {
  auto m = sharp();
  const ms::generation options{.max_new_tokens = 30};
  const auto out = ms::generate(m, prompt, options, fixed_length{.length = {.num_speculations = 3}}, ignore);
  int drafted = 0;
  for (const auto& e : out.tokens) drafted += e.drafted;
  CHECK(drafted == out.stats.accepted);
  CHECK(out.stats.accepted <= out.stats.drafted);
  CHECK(out.stats.rounds + out.stats.accepted >= 30);
  CHECK(out.stats.tokens == 30);
  auto same = echo();
  CHECK(ms::generate(same, prompt, options, fixed_length{.draft = {.exit_layer = 2}}, ignore).stats.acceptance_rate() ==
        1);
}

TEST_CASE("what generation refuses, and how it says so") {
  auto m = sharp();
  const auto fails = [&](const std::vector<int>& p, const ms::generation& g, const char* message) {
    CHECK_THROWS_WITH_AS(ms::generate(m, p, g), doctest::Contains(message), ms::config_error);
  };
  fails({}, {}, "the prompt is empty");
  fails(std::vector<int>(41, 1), {}, "the prompt is longer than the context: expected at most 40 tokens, got 41");
  fails({1, 11}, {}, "token id 11 is outside the vocabulary of 11");
  fails({1, -1}, {}, "token id -1 is outside the vocabulary of 11");
  fails({1, 2, 3}, {.max_new_tokens = 39},
        "a prompt of 3 tokens leaves room for 38 new ones in a context of 40, asked for 39");
  fails({1}, {.max_new_tokens = -1}, "max_new_tokens must be 0 (until the context is full) or more, got -1");
  fails({1}, {.sampling = {.temperature = -0.5f}}, "temperature");
  CHECK_THROWS_WITH_AS(
      ms::generate(m, prompt, {}, small::decoder{.draft = {.exit_layer = 4}}, ignore),
      doctest::Contains("exit layer 4 is out of range: a draft must leave below the full depth of 4 layers"),
      ms::config_error);
  CHECK_THROWS_WITH_AS(ms::generate(m, prompt, {}, small::decoder{.draft = {.exit_layer = -1}}, ignore),
                       doctest::Contains("exit layer -1 is out of range"), ms::config_error);
  CHECK_THROWS_WITH_AS(ms::generate(m, prompt, {}, fixed_length{.length = {.num_speculations = 0}}, ignore),
                       doctest::Contains("num_speculations must be at least 1, got 0"), ms::config_error);
  ms::model<own_heads, B> own({.sizes = shape.sizes, .exits = ms::exits_after(2)}, ms::seed{1});
  CHECK_THROWS_WITH_AS(ms::generate(own, prompt, {}, own_heads::decoder{.draft = {.exit_layer = 1}}, ignore),
                       doctest::Contains("exit layer 1 is out of range: this model of 4 layers has exits after 2, 4"),
                       ms::config_error);
  // A session driven by hand past its end.
  ms::session s(m);
  s.prefill(std::vector<int>(40, 1));
  auto x = s.memory().take<float>(1, 24);
  s.embed(x, 1, 0);
  CHECK_THROWS_WITH_AS(s.run(0, 4, x, 40), doctest::Contains("the context of 40 tokens is exhausted"),
                       ms::config_error);
}

TEST_CASE("configs that do not fit together are refused by name") {
  const auto fails = [](auto change, const char* message) {
    ms::config<small> c = shape;
    change(c);
    CHECK_FALSE(ms::valid(c));
    CHECK_THROWS_WITH_AS((ms::model<small, B>(c)), doctest::Contains(message), ms::config_error);
  };
  fails([](auto& c) { c.sizes.layers = 0; }, "sizes.layers must be from 1 to 127");
  fails([](auto& c) { c.sizes.heads = 5; }, "sizes.dim must be a multiple of sizes.heads");
  fails([](auto& c) { c.sizes.kv_heads = 3; }, "sizes.heads must be a multiple of sizes.kv_heads");
  fails([](auto& c) { c.sizes.head_dim = 5; }, "sizes.head_dim must be even");
  fails([](auto& c) { c.sizes.experts = 1; }, "sizes.experts must be at least the router's experts_per_token");
  fails([](auto& c) { c.sizes.vocab = 0; }, "sizes.vocab must be at least 1");
  fails([](auto& c) { c.exits = ms::exits_after(4); }, "exits must lie from 1 to sizes.layers - 1");
}

TEST_CASE("checkpoints: what is saved is loaded, what is damaged is refused") {
  namespace fs = std::filesystem;
  const fs::path folder = fs::temp_directory_path() / ms::text("moeskip-checkpoints-", int(::getpid()));
  fs::create_directories(folder);
  const fs::path file = folder / "model.safetensors";
  auto m = sharp();
  ms::save(m, file);
  auto loaded = ms::load<small, B>(file);
  CHECK(loaded.configuration() == m.configuration());
  CHECK(ms::generate(loaded, prompt, {.max_new_tokens = 12}).ids() ==
        ms::generate(m, prompt, {.max_new_tokens = 12}).ids());
  auto half = ms::load<small, ms::cpu<ms::bf16>>(file);
  CHECK(float(half.block()[7]) == float(ms::bf16(m.block()[7])));

  CHECK_THROWS_WITH_AS((ms::load<own_heads, B>(file)),
                       doctest::Contains("the file holds another variant: exit_head: expected own, got shared"),
                       ms::file_error);
  struct other : ms::variant {
    using router = ms::router::top_k<1>;
    using expert_dropout = ms::expert_dropout::bernoulli;
  };
  CHECK_THROWS_WITH_AS(
      (ms::load<other, B>(file)),
      doctest::Contains("expert_dropout: expected bernoulli, got none; router: expected top_k<1>, got top_k<2>"),
      ms::file_error);
  CHECK_THROWS_WITH_AS((ms::load<small, B>(folder / "absent.safetensors")), doctest::Contains("absent.safetensors"),
                       ms::file_error);
  CHECK_THROWS_WITH_AS(ms::save(m, folder / "no such folder" / "x.safetensors"), doctest::Contains("no such folder"),
                       ms::file_error);

  fs::copy_file(file, folder / "short.safetensors");
  fs::resize_file(folder / "short.safetensors", fs::file_size(file) - 100);
  CHECK_THROWS_WITH_AS((ms::load<small, B>(folder / "short.safetensors")), doctest::Contains("short.safetensors"),
                       ms::file_error);

  // Flip a digit of the header's sizes: metadata and tensors no longer agree.
  std::fstream edit(file, std::ios::in | std::ios::out | std::ios::binary);
  std::string head(4096, '\0');
  edit.read(head.data(), std::streamsize(head.size()));
  const std::size_t at = head.find("\"sizes.ffn\":\"16\"");
  REQUIRE(at != std::string::npos);
  edit.seekp(std::streamoff(at + 14)), edit.write("8", 1), edit.close();
  CHECK_THROWS_WITH_AS((ms::load<small, B>(file)), doctest::Contains("expected shape (18, 24), got (16, 24)"),
                       ms::file_error);
  fs::remove_all(folder);
}

TEST_CASE("a policy whose numbers a checkpoint would lose is not saved") {
  const auto file =
      std::filesystem::temp_directory_path() / ms::text("moeskip-fields-", int(::getpid()), ".safetensors");
  ms::config<secretive> c{.sizes = shape.sizes};
  ms::save(ms::model<secretive, B>(c, ms::seed{1}), file);  // as by default: nothing is lost
  CHECK(ms::load<secretive, B>(file).configuration() == c);
  c.router.temperature = 0.25f;
  CHECK_THROWS_WITH_AS(ms::save(ms::model<secretive, B>(c, ms::seed{1}), file),
                       doctest::Contains("a checkpoint would lose numbers of slot router (secretive)"),
                       ms::config_error);
  ms::config<forgetful> d{.sizes = shape.sizes};  // lists one of two
  d.router.temperature = 0.25f;
  ms::save(ms::model<forgetful, B>(d, ms::seed{1}), file);
  CHECK(ms::load<forgetful, B>(file).configuration() == d);
  d.router.unlisted = 3;
  CHECK_THROWS_WITH_AS(ms::save(ms::model<forgetful, B>(d, ms::seed{1}), file),
                       doctest::Contains("a checkpoint would lose numbers of slot router (forgetful)"),
                       ms::config_error);
  std::filesystem::remove(file);
}

TEST_CASE("batches refuse a text that is too short") {
  const std::vector<int> text(100, 1);
  CHECK_THROWS_WITH_AS(ms::random_windows(text, 4, 25, ms::seed{1}),
                       doctest::Contains("the corpus is shorter than one batch: expected at least 101 tokens"),
                       ms::config_error);
  CHECK_NOTHROW(ms::random_windows(text, 4, 24, ms::seed{1}));
}

TEST_CASE("describe says what a model is") {
  const std::string said = ms::describe(sharp());
  CHECK(said.find("router=top_k<2>") != std::string::npos);
  CHECK(said.find("exits      1, 2, 4") != std::string::npos);
  CHECK(said.find("cpu<f32, ") != std::string::npos);
  const auto note = [](ms::layer_set exits) {
    const ms::model<small, B> m({.sizes = shape.sizes, .exits = exits});
    return ms::describe(m).find("exit after layer 1 the weight 0") != std::string::npos;
  };
  CHECK(note(ms::exits_after(1, 2)));
  CHECK_FALSE(note(ms::exits_after(2)));
  const auto f = ms::footprint(sharp());
  // By hand: attention 2·24 + 24·6·(2·4 + 2·2), MoE router 4·24, two experts of 3·24·16; head 24 + 11·24.
  CHECK(f.active_parameters == 4 * (48 + 24 * 6 * 12 + 96 + 2 * 3 * 24 * 16) + 24 + 11 * 24);
  CHECK(f.parameters == 4 * (48 + 24 * 6 * 12 + 96 + 4 * 3 * 24 * 16) + 24 + 2 * 11 * 24);
}
