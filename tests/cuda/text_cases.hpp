// Ops of a text that grows on the device, as calls on random data that any backend can make (cases.hpp), and all that a
// GPU is asked to do as plain loops in double do it.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "cases.hpp"
#include "downstream/mine.hpp"
#include "moeskip/decode/exit_rule/fixed.hpp"
#include "moeskip/decode/exit_rule/max_probability.hpp"
#include "moeskip/decode/exit_rule/patience.hpp"

namespace tests {

inline const ms::sampling ways[] = {{},
                                    {.temperature = 0.7f},
                                    {.temperature = 1.3f, .top_k = 5},
                                    {.temperature = 1, .top_p = 0.6f},
                                    {.temperature = 0.5f, .top_k = 40, .top_p = 0.9f},
                                    {.temperature = 2, .top_k = 1000}};

/// Logits with equals among them.
template <class B> ms::mat<typename trial<B>::T> stepped(trial<B>& t, ms::index_t rows, ms::index_t cols) {
  const auto m = t.numbers(rows, cols);
  for (auto& x : m) x = std::round(float(x) * 12) / 4;
  return m;
}

/// The laws of rows of logits.
template <class B> auto laws_of(trial<B>& t, ms::mat<typename trial<B>::T> logits, const ms::sampling& options) {
  const auto laws = t.memory.template take<ms::token_law<typename trial<B>::T>>(logits.rows());
  ms::token_laws(t.backend, laws, logits, options);
  return laws;
}

struct law_case {
  ms::sampling options;
  template <class B> void operator()(trial<B>& t) const {
    const int N = t.between(1, 4), V = t.between(2, 500);
    const auto logits = t.between(0, 2) ? stepped(t, N, V) : t.numbers(N, V);
    if (V > 9) logits(0, 3) = NAN, logits(N - 1, 7) = -std::numeric_limits<float>::infinity();
    const auto laws = laws_of(t, logits, options);
    ms::settle(t.backend);
    for (const auto& law : laws) {
      t.out.push_back({double(law.best), double(law.highest), double(law.second), double(law.mass), double(law.total)});
      t.out.push_back({double(law.weighted)});
      if (options.cuts() && options.top_k < V) t.out.push_back({double(law.least), double(law.last)});
    }
  }
};

/// A text in memory that a device sees.
template <class B> struct text_of {
  ms::growing_text text;
  explicit text_of(trial<B>& t, int count = 3, int room = 20) {
    const auto some = [&] { return t.memory.template take_zeroed<int>(room); };
    text = {some(), some(), some(), t.memory.template take<ms::growth>(1).data()};
    *text.now = {.count = count, .end = room};
  }
  void show(trial<B>& t) const {
    ms::settle(t.backend);
    const ms::growth& now = *text.now;
    t.out.push_back({double(now.count), double(now.going), double(now.rounds), double(now.damaged)});
    t.out.push_back({double(now.leaves), double(now.exit_layer)});
    for (const auto& list : {text.tokens, text.exits, text.drafted}) t.out.emplace_back(list.begin(), list.end());
  }
};

/// Tokens drawn behind a text, and some of it embedded.
struct draw_case {
  ms::sampling options;
  template <class B> void operator()(trial<B>& t) const {
    using T = typename trial<B>::T;
    const int V = t.between(2, 300), K = t.between(1, 4), D = t.between(1, 20);
    text_of<B> its(t, K + 3);
    const ms::growing_text& text = its.text;
    for (int i = 0; i < K + 3; ++i) text.tokens[i] = t.between(0, V - 1);
    const auto x = t.numbers(K, D);
    const auto position = t.memory.template take<int>(K), token = t.memory.template take<int>(K);
    text.now->count = 3;
    ms::embed_text(t.backend, x, position, token, text, 1, t.weights(V, D));
    t.keep(x, position, token);
    const auto logits = stepped(t, K + 1, V);
    const auto laws = laws_of(t, logits, options);
    const auto law = [&](int n) { return ms::vec<const ms::token_law<T>>(&laws[n], 1); };
    ms::next_token(t.backend, text, logits.rows(0, 1), law(0), ms::seed{8}, 4);
    for (int k = 0; k < K; ++k) ms::draft_token(t.backend, text, logits.rows(k + 1, 1), law(k + 1), ms::seed{8}, k);
    its.show(t);
  }
};

/// Which draft is judged: the likeliest tokens of a model near the full one, or of the full model itself; or the full
/// model's least likely ones. A law that cuts allows none of these, and where both laws are one it leaves nothing else.
enum class drafted { near_it, alike, impossible };

/// A draft, given as it is, is judged.
struct judge_case {
  ms::sampling options;
  drafted how = drafted::near_it;
  template <class B> void operator()(trial<B>& t) const {
    const bool alike = how != drafted::near_it;
    const int V = t.between(2, 300), K = t.between(1, 4), n = alike ? V : t.between(1, V);
    text_of<B> its(t);
    const auto p = stepped(t, K + 1, V);
    const auto q = stepped(t, K, n);
    for (int k = 0; k < K; ++k) {
      for (int i = 0; i < n; ++i) q(k, i) = alike ? p(k, i) : (q(k, i) + 3 * p(k, i)) / 4;
      const auto* row = &q(k, 0);
      its.text.tokens[3 + k] =
          int((how == drafted::impossible ? std::min_element(row, row + n) : std::max_element(row, row + n)) - row);
    }
    const auto p_law = laws_of(t, p, options), q_law = laws_of(t, q, options);
    ms::judge_draft(t.backend, its.text, p, p_law, q, q_law, ms::seed{8}, 2, 4);
    its.show(t);
  }
};

/// An exit rule asked at a few exits of two tokens.
template <class Rule> struct ask_case {
  Rule rule;
  template <class B> void operator()(trial<B>& t) const {
    text_of<B> its(t);
    const auto state = t.memory.template take<typename Rule::state>(1);
    for (int exit = 0; exit < 6; ++exit) {
      const int V = t.between(2, 40);
      const auto law = laws_of(t, stepped(t, 1, V), {});
      ms::ask_exit(t.backend, its.text, law, state, rule, V, exit % 3 + 1, exit % 3 == 0);
      its.show(t);
    }
  }
};

/// How far from double numbers may be, relative to their root mean square: where sums alone are rounded, and where
/// tensor cores multiply. 0: not asked.
struct limits {
  double sums = 3e-5, tensor_cores = 3e-5;
};

/// Calls f(case, its name, limits) for all that bench/gpu/check.cpp asks of a device. It stands here so that a test
/// sees which phases it meets.
template <class F> void each_gpu_case(F&& f) {
  // Activations are rounded there, too, and a chain of ops multiplies their largest errors.
  each_case([&](const auto& c) {
    f(c, ms::text(c.phase, c.many ? " (many rows)" : " (few rows)"), limits{3e-5, 0.1});
  });
  f(crowded_case{}, "many experts", limits{3e-5, 5e-2});
  f(long_rows_case{}, "few rows of many numbers", limits{});
  f(long_attend_case{false}, "attend_tiles<64>", limits{0, 2e-2});
  f(long_attend_case{true}, "attend_tiles<128>", limits{0, 2e-2});
  f(long_attend_case{false, true}, "attend_tiles<64>, steep", limits{0, 5e-2});

  // Routing is never rounded; logits of hundreds of terms lie far apart, which a softmax makes the most of.
  constexpr limits routed{1e-4, 1e-4};
  const auto routes = [&](const auto& router, const std::string& what) {
    using R = std::decay_t<decltype(router)>;
    f(route_case<R>{3, 5, router}, "route (few rows), " + what, routed);
    f(route_case<R>{20, 13, router}, "route (many rows), " + what, routed);
    f(norm_route_case<R>{false, router}, "norm_route (few rows), " + what, routed);
    f(norm_route_case<R>{true, router}, "norm_route (many rows), " + what, routed);
  };
  routes(ms::router::top_k<8>{}, "top_k<8>");
  routes(everything::router{}, "biased, by segments");
  routes(tempered{}, "a user's");
  using namespace ms::expert_dropout;
  for (const auto scope : {ms::mask_scope::step, ms::mask_scope::sequence, ms::mask_scope::token}) {
    const std::string what = ms::text(", one set for each of scope ", int(scope));
    f(mask_case<bernoulli>{{.p = 0.5f, .scope = scope}}, "draw_survivors, bernoulli" + what, limits{});
    f(mask_case<cluster>{{.p = 0.98f, .size = 3, .scope = scope}}, "draw_survivors, cluster" + what, limits{});
  }
  f(mask_case<without_one>{}, "draw_survivors, a user's", limits{});

  for (std::size_t i = 0; i < std::size(ways); ++i) {
    const std::string what = ms::text(", sampled in way ", i);
    f(law_case{ways[i]}, "token_laws" + what, limits{});
    f(draw_case{ways[i]}, "embed_text, next_token, draft_token" + what, limits{});
    f(judge_case{ways[i]}, "judge_draft" + what, limits{});
    f(judge_case{ways[i], drafted::alike}, "judge_draft, of the full model's" + what, limits{});
    f(judge_case{ways[i], drafted::impossible}, "judge_draft, of what cannot be" + what, limits{});
  }
  f(ask_case<ms::exit_rule::fixed>{{.exit_layer = 2}}, "ask_exit, fixed", limits{});
  f(ask_case<ms::exit_rule::max_probability>{{.threshold = 0.2f}}, "ask_exit, max_probability", limits{});
  f(ask_case<ms::exit_rule::patience>{{.exits = 2}}, "ask_exit, patience", limits{});
}

}  // namespace tests
