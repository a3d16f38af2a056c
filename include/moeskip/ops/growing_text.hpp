// A text that grows where the model runs: tokens are chosen, drafted and judged by ops, so that a loop of decoding needs
// no host between tokens. Randomness is keyed as decode/ keys it, by the pending token's position and the round.
#pragma once

#include <limits>

#include "moeskip/concepts/exit_rule.hpp"
#include "moeskip/ops/embed.hpp"
#include "moeskip/ops/token_law.hpp"
#include "moeskip/tensor/rows.hpp"

namespace moeskip {

/// Where a text stands.
struct growth {
  int count = 0;        // tokens that stand; the last one is pending: it has not been run
  int end = 0;          // tokens that there may be
  int going = 0;        // whether the loop goes on
  int leaves = 0;       // whether the pending token leaves at the exit that was asked last …
  int exit_layer = 0;   // … and the layers that it went through
  int first = 0;        // tokens that stood when the generation began
  int steps = 1;        // the most that it can make
  int rounds = 0;       // of it so far
  int visits = 0;       // distinct experts of each layer and call, added up since the loop was started
  int bad_choices = 0;  // bad_choice() of an expert that does not exist, or that a router chose twice
  int damaged = 0;      // some logits were no finite numbers: the text is not to be used

  /// An expert's id as a number that is not 0, and back.
  MOESKIP_HD static int bad_choice(int e) { return e < 0 || e == std::numeric_limits<int>::max() ? e : e + 1; }
  int bad_expert() const { return bad_choices > 0 ? bad_choices - 1 : bad_choices; }
};

/// What ops know of it. The arrays have room for C + 1 tokens, C the context.
struct growing_text {
  vec<int> tokens;   // those that stand, and behind them those that are drafted
  vec<int> exits;    // layers that each came from
  vec<int> drafted;  // whether it was drafted: 0, 1
  growth* now;
  vec<const int> stops{};  // ids behind which the loop ends

  /// The id and position of row n of a call of the pending token and what is drafted behind it.
  MOESKIP_HD index_t at(index_t n) const { return now->count - 1 + n; }
  MOESKIP_HD void push(int token, int exit_layer, bool was_drafted) const {
    const index_t n = now->count++;
    tokens[n] = token, exits[n] = exit_layer, drafted[n] = was_drafted;
  }
};

/// x (N, D) = embeddings of the tokens at text.at(from + n), and the lists (N) that their rows of a call have.
struct embed_text_t {
  static constexpr const char* name = "embed_text";
  template <class B> void operator()(B& b, mat<scalar_t<B>> x, vec<int> position, vec<int> token,
                                     const growing_text& text, int from, mat<const weight_t<B>> table) const {
    expect_shape(name, "x", x, position.size(), table.cols());
    expect_shape(name, "token", token, position.size());
    run_kernel<embed_text_t>(b, x, position, token, text, from, table);
  }
};
inline constexpr embed_text_t embed_text{};

/// Draws the token behind the pending one from logits (1, V) and their law (1), and adds it. exit_layer: where the
/// logits come from, 0: where the text says. The loop goes on while there is room for another.
struct next_token_t {
  static constexpr const char* name = "next_token";
  template <class B> void operator()(B& b, const growing_text& text, mat<const scalar_t<B>> logits,
                                     vec<const token_law<scalar_t<B>>> law, seed from, int exit_layer) const {
    expect_shape(name, "law", law, 1);
    run_kernel<next_token_t>(b, text, logits, law, from, exit_layer);
  }
};
inline constexpr next_token_t next_token{};

/// Draws the draft's token `i` behind the pending one from logits (1, n) and their law (1).
struct draft_token_t {
  static constexpr const char* name = "draft_token";
  template <class B> void operator()(B& b, const growing_text& text, mat<const scalar_t<B>> logits,
                                     vec<const token_law<scalar_t<B>>> law, seed from, int i) const {
    expect_shape(name, "law", law, 1);
    run_kernel<draft_token_t>(b, text, logits, law, from, i);
  }
};
inline constexpr draft_token_t draft_token{};

/// Exact speculative sampling (decode/acceptance/exact.hpp) of K drafted tokens: those that stand are added, and then
/// one of the full model's own. p (K + 1, V) are the full model's logits, q (K, n) the draft's, with their laws. A round
/// more is counted; the loop goes on while there is room for one as long.
struct judge_draft_t {
  static constexpr const char* name = "judge_draft";
  template <class B> void operator()(B& b, const growing_text& text, mat<const scalar_t<B>> p,
                                     vec<const token_law<scalar_t<B>>> p_law, mat<const scalar_t<B>> q,
                                     vec<const token_law<scalar_t<B>>> q_law, seed from, int exit_layer,
                                     int layers) const {
    expect_shape(name, "p", p, q.rows() + 1, p.cols());
    expect_shape(name, "p_law", p_law, p.rows()), expect_shape(name, "q_law", q_law, q.rows());
    run_kernel<judge_draft_t>(b, text, p, p_law, q, q_law, from, exit_layer, layers);
  }
};
inline constexpr judge_draft_t judge_draft{};

/// Asks whether the pending token leaves after exit_layer: text.now->leaves. law (1): of the exit's logits, of so many ids.
/// state (1): the rule's memory of the token, fresh at the first exit.
struct ask_exit_t {
  static constexpr const char* name = "ask_exit";
  template <class B, class Rule> void operator()(B& b, const growing_text& text, vec<const token_law<scalar_t<B>>> law,
                                                 vec<typename Rule::state> state, const Rule& rule, index_t vocabulary,
                                                 int exit_layer, bool first) const {
    expect_shape(name, "law", law, 1), expect_shape(name, "state", state, 1);
    run_kernel<ask_exit_t>(b, text, law, state, rule, vocabulary, exit_layer, first);
  }
};
inline constexpr ask_exit_t ask_exit{};

namespace detail {

MOESKIP_HD inline double roll(seed from, stream purpose, const growing_text& text, int i) {
  return draws{from, purpose}.uniform_double(std::uint64_t(text.now->count - 1 + i), 0,
                                             std::uint64_t(text.now->rounds));
}

/// The full model's p, or what is left of it where q has been.
template <class T> struct left_of {
  const T *p, *q;  // logits; q null: nothing was drafted
  const token_law<T>*p_law, *q_law;
  index_t q_size;
  MOESKIP_HD T operator()(index_t i) const {
    const T all = p_law->probability(i, p[i]);
    if (!q || i >= q_size) return all;
    const T rest = all - q_law->probability(i, q[i]);
    return rest > T{} ? rest : T{};
  }
};

template <class T> MOESKIP_HD bool stands(const growing_text& text, int k, mat<const T> p,
                                          vec<const token_law<T>> p_law, mat<const T> q, vec<const token_law<T>> q_law,
                                          seed from) {
  const int token = text.tokens[text.at(k + 1)];
  const double chance = double(p_law[k].probability(token, p(k, token)));
  return roll(from, stream::acceptance, text, k) * double(q_law[k].probability(token, q(k, token))) < chance;
}

/// How many of the K drafted tokens stand.
template <class T> MOESKIP_HD int standing(const growing_text& text, mat<const T> p, vec<const token_law<T>> p_law,
                                           mat<const T> q, vec<const token_law<T>> q_law, seed from) {
  int kept = 0;
  while (kept < q.rows() && stands(text, kept, p, p_law, q, q_law, from)) ++kept;
  return kept;
}

template <class T> MOESKIP_HD bool damaged(vec<const token_law<T>> laws) {
  for (index_t n = 0; n < laws.size(); ++n)
    if (laws[n].best < 0) return true;
  return false;
}

/// The end of a round: `kept` drafted tokens stand, and `token` comes behind them.
MOESKIP_HD inline void end_round(const growing_text& text, int kept, int longest, int token, int exit_layer,
                                 int layers) {
  growth& now = *text.now;
  for (int k = 0; k < kept; ++k) text.push(text.tokens[now.count], exit_layer, true);
  text.push(token, layers, false);
  ++now.rounds;
  now.going = now.count + longest + 1 <= now.end;
  for (int n = now.count - kept - 1; n < now.count; ++n)
    for (index_t i = 0; i < text.stops.size(); ++i)
      if (text.tokens[n] == text.stops[i]) now.going = 0;
}
/// Gives the text up.
MOESKIP_HD inline void stop_damaged(const growing_text& text) { text.now->damaged = 1, text.now->going = 0; }

/// The token at height u in [0, 1) of masses (V) that need not add up to one; the last with a mass where rounding leaves
/// none.
template <class Mass> int pick_by(index_t V, double u, const Mass& mass) {
  double total = 0, below = 0;
  for (index_t i = 0; i < V; ++i) total += double(mass(i));
  index_t last = 0;
  for (index_t i = 0; i < V; ++i) {
    if (!(mass(i) > 0)) continue;
    below += double(mass(i)), last = i;
    if (u * total < below) break;
  }
  return int(last);
}

}  // namespace detail

template <> struct kernel<embed_text_t, on_reference> {
  template <class B, class T, class W> static void run(B& b, mat<T> x, vec<int> position, vec<int> token,
                                                       const growing_text& text, int from, mat<const W> table) {
    for (index_t n = 0; n < x.rows(); ++n)
      position[n] = int(text.at(from + n)), token[n] = text.tokens[text.at(from + n)];
    embed(b, x, token, table);
  }
};

template <> struct kernel<next_token_t, on_reference> {
  template <class B, class T> static void run(B&, const growing_text& text, mat<const T> logits,
                                              vec<const token_law<T>> law, seed from, int exit_layer) {
    if (detail::damaged(law)) return detail::stop_damaged(text);
    const double u = draws{from, stream::sampling}.uniform_double(std::uint64_t(text.at(0)));
    const int token = detail::pick_by(logits.cols(), u, [&](index_t i) { return law[0].weight(i, logits(0, i)); });
    const int layers = exit_layer ? exit_layer : text.now->exit_layer;
    detail::end_round(text, 0, 0, token, 0, layers);
  }
};

template <> struct kernel<draft_token_t, on_reference> {
  template <class B, class T>
  static void run(B&, const growing_text& text, mat<const T> logits, vec<const token_law<T>> law, seed from, int i) {
    if (detail::damaged(law)) return detail::stop_damaged(text);
    const double u = detail::roll(from, stream::draft, text, i);
    text.tokens[text.at(i + 1)] =
        detail::pick_by(logits.cols(), u, [&](index_t v) { return law[0].weight(v, logits(0, v)); });
  }
};

template <> struct kernel<judge_draft_t, on_reference> {
  template <class B, class T> static void run(B&, const growing_text& text, mat<const T> p,
                                              vec<const token_law<T>> p_law, mat<const T> q,
                                              vec<const token_law<T>> q_law, seed from, int exit_layer, int layers) {
    if (text.now->damaged || detail::damaged(p_law)) return detail::stop_damaged(text);
    const int kept = detail::standing(text, p, p_law, q, q_law, from), K = int(q.rows());
    detail::left_of<T> rest{&p(kept, 0), kept < K ? &q(kept, 0) : nullptr, &p_law[kept], &q_law[std::min(kept, K - 1)],
                            q.cols()};
    double left = 0;
    for (index_t i = 0; i < p.cols(); ++i) left += double(rest(i));
    if (!(left > 0)) rest.q = nullptr;  // p equals q, but for rounding
    const int token = detail::pick_by(p.cols(), detail::roll(from, stream::sampling, text, kept), rest);
    detail::end_round(text, kept, K, token, exit_layer, layers);
  }
};

namespace detail {
template <class Rule> MOESKIP_HD void ask(const growing_text& text, token_law<float> law, typename Rule::state& state,
                                          const Rule& rule, index_t vocabulary, int exit_layer, bool first) {
  growth& now = *text.now;
  if (first) state = {};
  now.exit_layer = exit_layer;
  if (!Rule::reads_logits) law = {.highest = NAN, .second = NAN, .mass = NAN, .weighted = NAN};  // nobody made it
  else if (law.best < 0) return stop_damaged(text), void(now.leaves = 1);
  const exit_moment seen{
      law.best,      law.highest,           law.second, law.mass, law.weighted, vocabulary, exit_layer,
      now.count - 1, now.count - now.first, now.steps};
  now.leaves = rule.leaves(seen, state) ? 1 : 0;
}
}  // namespace detail

template <> struct kernel<ask_exit_t, on_reference> {
  template <class B, class T, class Rule> static void run(B&, const growing_text& text, vec<const token_law<T>> law,
                                                          vec<typename Rule::state> state, const Rule& rule,
                                                          index_t vocabulary, int exit_layer, bool first) {
    const token_law<T>& l = law[0];
    const token_law<float> as_floats{.best = l.best,
                                     .highest = float(l.highest),
                                     .second = float(l.second),
                                     .mass = float(l.mass),
                                     .weighted = float(l.weighted)};
    detail::ask(text, as_floats, state[0], rule, vocabulary, exit_layer, first);
  }
};

}  // namespace moeskip
