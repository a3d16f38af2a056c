// Phases of a text that grows on the device: tokens are drawn by one block, whose warps take a run of the vocabulary
// each.
#pragma once

#include <bit>

#include "moeskip/backend/cuda/backend.hpp"
#include "moeskip/backend/cuda/block.hpp"
#include "moeskip/ops/growing_text.hpp"

namespace moeskip {

namespace phase {

template <class W> struct embed_text {
  static constexpr const char* name = "embed_text";
  mat<float> x;  // (N, D)
  vec<int> position, token;
  growing_text text;
  int from;
  mat<const W> table;
  MOESKIP_HD void operator()(index_t i) const {
    const index_t n = i / x.cols(), col = i % x.cols(), at = text.at(from + n);
    const int id = text.tokens[at];
    x.data()[i] = to<float>(table(id, col));
    if (col == 0) position[n] = int(at), token[n] = id;
  }
};

/// Floats that block_pick shares: a sum of each warp, and what was found.
inline constexpr index_t pick_shared = 33;

/// The token at height u in [0, 1) of masses (V); the last with a mass where rounding leaves none; -1 where none has
/// one. Barriers `barrier` and `barrier` + 1.
template <class Block, class Mass>
MOESKIP_HD int block_pick(const Block& b, index_t V, double u, const Mass& mass, int barrier) {
  float* sums = b.shared();
  int* found = reinterpret_cast<int*>(sums + 32);
  const index_t run = ((V + 31) / 32 + b.warps() - 1) / b.warps() * 32, first = b.warp() * run;
  const index_t end = first + run < V ? first + run : V;
  float sum = 0;
  for (index_t v = first + b.lane(); v < end; v += 32) sum += mass(v);
  sum = b.warp_sum(sum);
  if (b.lane() == 0) sums[b.warp()] = sum;
  b.sync(barrier);
  double total = 0, below = 0;
  for (int w = 0; w < b.warps(); ++w) total += double(sums[w]);
  int which = -1;
  double before = 0;
  for (int w = 0; w < b.warps() && !(which >= 0 && u * total < below); ++w)
    if (sums[w] > 0) which = w, before = below, below += double(sums[w]);
  if (b.warp() == which) {
    int token = -1;
    below = before;
    for (index_t v = first; v < end; v += 32) {
      const float mine = v + b.lane() < end ? mass(v + b.lane()) : 0.f;
      const double here = double(b.warp_sum(mine));
      const std::uint32_t any = b.warp_which(mine > 0);
      if (any) token = int(v) + 31 - std::countl_zero(any);
      if (!(u * total < below + here)) {
        below += here;
        continue;
      }
      for (int j = 0; j < 32; ++j) {
        const float m = b.warp_at(mine, j);
        if (!(m > 0)) continue;
        below += double(m), token = int(v) + j;
        if (u * total < below) break;
      }
      break;
    }
    if (b.lane() == 0) *found = token;
  }
  b.sync(barrier + 1);
  return which < 0 ? -1 : *found;
}

/// Greedy, nothing is drawn: one thread does it all, without barriers.
template <class Block> MOESKIP_HD bool nothing_to_do(const Block& b, const token_law<float>& law) {
  return law.slope == 0 && b.thread() != 0;
}
/// The token at height u of a law of logits (1, V); -1 where none is a finite number. Barriers 0 and 1.
template <class Block>
MOESKIP_HD int draw(const Block& b, const token_law<float> law, mat<const float> logits, double u) {
  if (law.slope == 0) return law.best;
  const float* row = logits.data();
  return block_pick(
      b, law.best < 0 ? 0 : logits.cols(), u, [&](index_t v) { return law.weight(v, row[v]); }, 0);
}

struct next_token {
  static constexpr const char* name = "next_token";
  static constexpr int barriers = 2;
  growing_text text;
  mat<const float> logits;
  vec<const token_law<float>> law;
  seed from;
  int exit_layer;
  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    if (nothing_to_do(b, law[0])) return;
    const double u = draws{from, stream::sampling}.uniform_double(std::uint64_t(text.at(0)));
    const int token = draw(b, law[0], logits, u);
    if (b.thread() != 0) return;
    if (token < 0) detail::stop_damaged(text);
    else detail::end_round(text, 0, 0, token, 0, exit_layer ? exit_layer : text.now->exit_layer);
  }
};

struct draft_token {
  static constexpr const char* name = "draft_token";
  static constexpr int barriers = 2;
  growing_text text;
  mat<const float> logits;
  vec<const token_law<float>> law;
  seed from;
  int i;
  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    if (nothing_to_do(b, law[0])) return;
    const int token = draw(b, law[0], logits, detail::roll(from, stream::draft, text, i));
    if (b.thread() != 0) return;
    if (token < 0) detail::stop_damaged(text);
    else text.tokens[text.at(i + 1)] = token;
  }
};

struct judge_draft {
  static constexpr const char* name = "judge_draft";
  static constexpr int barriers = 4;
  growing_text text;
  mat<const float> p, q;  // (K + 1, V) (K, n)
  vec<const token_law<float>> p_law, q_law;
  seed from;
  int exit_layer, layers;
  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    const int K = int(q.rows());
    const bool gone = text.now->damaged || detail::damaged(p_law), sampled = !gone && p_law[0].slope != 0;
    if (!sampled && b.thread() != 0) return;  // as in nothing_to_do(), or the text is given up
    const int kept = gone ? 0 : detail::standing<float>(text, p, p_law, q, q_law, from);
    int token = gone ? -1 : p_law[kept].best;
    if (sampled) {
      const double u = detail::roll(from, stream::sampling, text, kept);
      detail::left_of<float> rest{&p(kept, 0), kept < K ? &q(kept, 0) : nullptr, &p_law[kept],
                                  &q_law[kept < K ? kept : K - 1], q.cols()};
      token = block_pick(b, p.cols(), u, rest, 0);
      if (token < 0) {  // p equals q, but for rounding
        rest.q = nullptr;
        token = block_pick(b, p.cols(), u, rest, 2);
      }
    }
    if (b.thread() != 0) return;
    if (token < 0) detail::stop_damaged(text);
    else detail::end_round(text, kept, K, token, exit_layer, layers);
  }
};

template <class Rule> struct ask_exit {
  static constexpr const char* name = "ask_exit";
  growing_text text;
  vec<const token_law<float>> law;
  vec<typename Rule::state> state;
  Rule rule;
  index_t vocabulary;
  int exit_layer;
  bool first;
  MOESKIP_HD void operator()(index_t) const {
    detail::ask(text, law[0], state[0], rule, vocabulary, exit_layer, first);
  }
};

}  // namespace phase

namespace detail {
template <class Call> const growing_text& seen_text(const growing_text& text) {
  Call::seen(text.tokens), Call::seen(text.exits), Call::seen(text.drafted), Call::seen(text.stops),
      Call::seen(vec<growth>(text.now, 1));
  return text;
}
}  // namespace detail

template <> struct kernel<embed_text_t, on_cuda> {
  template <class B, class W> static void run(B&, mat<float> x, vec<int> position, vec<int> token,
                                              const growing_text& text, int from, mat<const W> table) {
    using call = detail::device_call<embed_text_t, B>;
    call::each(x.size(), phase::embed_text<W>{call::seen(x), call::seen(position), call::seen(token),
                                              detail::seen_text<call>(text), from, call::seen(table)});
  }
};

template <> struct kernel<next_token_t, on_cuda> {
  template <class B> static void run(B&, const growing_text& text, mat<const float> logits,
                                     vec<const token_law<float>> law, seed from, int exit_layer) {
    using call = detail::device_call<next_token_t, B>;
    call::launch({1, 256, phase::pick_shared}, phase::next_token{detail::seen_text<call>(text), call::seen(logits),
                                                                 call::seen(law), from, exit_layer});
  }
};

template <> struct kernel<draft_token_t, on_cuda> {
  template <class B> static void run(B&, const growing_text& text, mat<const float> logits,
                                     vec<const token_law<float>> law, seed from, int i) {
    using call = detail::device_call<draft_token_t, B>;
    call::launch({1, 256, phase::pick_shared},
                 phase::draft_token{detail::seen_text<call>(text), call::seen(logits), call::seen(law), from, i});
  }
};

template <> struct kernel<judge_draft_t, on_cuda> {
  template <class B> static void run(B&, const growing_text& text, mat<const float> p,
                                     vec<const token_law<float>> p_law, mat<const float> q,
                                     vec<const token_law<float>> q_law, seed from, int exit_layer, int layers) {
    using call = detail::device_call<judge_draft_t, B>;
    call::launch({1, 256, phase::pick_shared},
                 phase::judge_draft{detail::seen_text<call>(text), call::seen(p), call::seen(q), call::seen(p_law),
                                    call::seen(q_law), from, exit_layer, layers});
  }
};

template <> struct kernel<ask_exit_t, on_cuda> {
  template <class B, class Rule> static void run(B&, const growing_text& text, vec<const token_law<float>> law,
                                                 vec<typename Rule::state> state, const Rule& rule, index_t vocabulary,
                                                 int exit_layer, bool first) {
    using call = detail::device_call<ask_exit_t, B>;
    call::each(1, phase::ask_exit<Rule>{detail::seen_text<call>(text), call::seen(law), call::seen(state), rule,
                                        vocabulary, exit_layer, first});
  }
};

}  // namespace moeskip
