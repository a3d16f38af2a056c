// The head of a MoE block as one phase, for up to 16 rows: all blocks normalise and score, and the one that is done last
// routes, notes and sorts. What each of the steps does stands in its own header.
#pragma once

#include "moeskip/backend/cuda/dispatch.hpp"
#include "moeskip/backend/cuda/linear.hpp"
#include "moeskip/backend/cuda/route.hpp"
#include "moeskip/ops/norm_route.hpp"

namespace moeskip {

namespace phase {

/// A block as if it were the only one.
template <class Block> struct only_block : Block {
  MOESKIP_HD explicit only_block(const Block& b) : Block(b) {}
  MOESKIP_HD static index_t block() { return 0; }
  MOESKIP_HD static index_t blocks() { return 1; }
};

template <class W, class R> struct norm_route {
  static constexpr const char* name = "norm_route";
  static constexpr int barriers = 8, threads = 256;
  norm_few_rows<W> scores;
  route<R> rows;
  vec<const W> bias;  // (E) or empty
  note_choices note;
  sort_choices sort;  // into nothing where nobody asks
  int* done;          // blocks that have written their scores
  mat<const W> first_weights() const { return scores.w; }

  /// Floats that a block of N rows shares: the rows' scales, then who is last, then what sorts; and behind these the bias.
  static index_t shared(index_t N, index_t E) { return N + sort_choices::shared(E) + E; }

  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    scores(b);  // barrier 0
    b.sync(1);
    int* const last = reinterpret_cast<int*>(b.shared());
    if (b.thread() == 0) *last = b.last_of(b.blocks(), done);
    b.sync(2);
    if (*last) alone(only_block<Block>(b));
  }

 private:
  /// By the last block. A function of its own, so that its registers are not those of the scores too.
  template <class Block> [[gnu::noinline]] MOESKIP_HD void alone(const Block& b) const {
    const vec<const float> wide = widened(b);
    rows.run(b, routing_step::score, wide);
    if (route<R>::in_order) b.sync(4);  // else a warp chooses for the rows that it scored
    rows.run(b, routing_step::choose, wide);
    b.sync(5);
    rows.run(b, routing_step::weigh, wide);
    note(b);
    if (sort.d.experts() > 0) sort.run(b, 6);
  }

  template <class Block> MOESKIP_HD vec<const float> widened(const Block& b) const {
    if (bias.size() == 0) return {};
    float* const wide = b.shared() + sort_choices::shared(bias.size());
    for (index_t e = b.thread(); e < bias.size(); e += b.threads()) wide[e] = to<float>(bias[e]);
    b.sync(3);
    return {wide, bias.size()};
  }
};

}  // namespace phase

template <> struct kernel<norm_route_t, on_cuda> {
  template <class B, class W, class R, class Memory>
  static void run(B& b, dispatch& d, mat<float> h, mat<float> logits, const routing<float>& r, mat<const float> x,
                  const router_weights<W>& w, float eps, const R& router, const routing_call<float>& c,
                  index_t capacity, Memory& memory) {
    using call = detail::device_call<norm_route_t, B>;
    constexpr bool fuses = logits_per_expert<R> != 0 && !ChoosesRows<R>;
    if constexpr (fuses)
      if (x.rows() <= detail::invariant_rows) {
        const index_t E = r.load.size();
        if (capacity != norm_route_t::unsorted) d = detail::room_for_choices(r.chosen, int(E), memory);
        detail::expect_seen<call>(r);
        const auto here = detail::listed_call<call>(c);
        using phase_t = phase::norm_route<W, R>;
        call::launch(
            {detail::ceiling(w.rows.rows(), phase_t::threads / 32), phase_t::threads, phase_t::shared(x.rows(), E)},
            phase_t{.scores = {call::seen(logits), call::seen(h), call::seen(x), call::seen(w.norm), call::seen(w.rows),
                               eps},
                    .rows = {r, logits, router, here},
                    .bias = call::seen(w.bias),
                    .note = detail::noting<call>(r, here),
                    .sort = {call::seen(d), r.chosen, detail::int_capacity(r.chosen, capacity), call::visits()},
                    .done = call::counters(1)});
        return;
      }
    d = norm_route_t::by_parts(b, h, logits, r, x, w, eps, router, c, capacity, memory);
  }
};

}  // namespace moeskip
