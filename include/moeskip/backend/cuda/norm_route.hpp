// The way from attention to the experts as one phase, for up to 16 rows: output projection, norm, scores, routing. The
// norm and the scores need all of the stream, of which a block makes 16 numbers: it brings what these add to each score,
// and to the sum of squares that the norm needs; the block that is done last adds up, divides, routes, notes and sorts.
// What each of the steps does stands in its own header.
#pragma once

#include <algorithm>
#include <cmath>

#include "moeskip/backend/cuda/dispatch.hpp"
#include "moeskip/backend/cuda/linear.hpp"
#include "moeskip/backend/cuda/route.hpp"
#include "moeskip/backend/cuda/sums_in_groups.hpp"
#include "moeskip/ops/norm_route.hpp"

namespace moeskip {

namespace phase {

/// A block as if it were the only one.
template <class Block> struct only_block : Block {
  MOESKIP_HD explicit only_block(const Block& b) : Block(b) {}
  MOESKIP_HD static index_t block() { return 0; }
  MOESKIP_HD static index_t blocks() { return 1; }
};

template <class W, class R> struct project_route {
  static constexpr const char* name = "project_route";
  static constexpr int barriers = 2 + sums_in_groups::barriers + 5, threads = 256;
  static constexpr int width = 2 * pack;  // of the stream's part that a block makes
  late_product<float, W> x;               // (N, D)
  mat<float> h;                           // (N, D)
  mat<float> logits;                      // (N, S)   S = E · logits_per_expert
  vec<const W> gain;                      // (D)
  mat<const W> scorers;                   // (S, D)
  float eps;
  sums_in_groups sums;  // (N · (S + 1)) of each row: its logits before the norm divides, and its squares
  route<R> rows;
  vec<const W> bias;  // (E) or empty
  note_choices note;
  sort_choices sort;  // into nothing where nobody asks
  mat<const W> first_weights() const { return x.w; }

  static constexpr index_t blocks(index_t D) { return detail::ceiling(D, width); }
  MOESKIP_HD static constexpr int sums_of_row(int S) { return S + 1; }
  /// Floats that a block of N rows shares: its part of the stream; then who is last and the rows' scales, then what
  /// sorts, and behind these the bias.
  static index_t shared(index_t N, index_t E) { return std::max(N * width, sort_choices::shared(E) + E); }

  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    prefetch(b);
    make_part(b);
    b.sync(0);
    add_base(b);
    b.sync(1);
    bring_sums(b);
    if (sums.finished(b, 2)) alone(only_block<Block>(b));
  }

 private:
  /// The first of the stream's numbers that are this block's.
  template <class Block> MOESKIP_HD static int first(const Block& b) { return int(b.block()) * width; }

  /// Asks for the weights that come after the product's.
  template <class Block> MOESKIP_HD void prefetch(const Block& b) const {
    for (index_t s = b.thread(); s < scorers.rows(); s += b.threads()) b.prefetch(&scorers(s, first(b)));
    if (b.thread() == 0) b.prefetch(&gain[first(b)]);
    if (b.block() == 0)
      for (index_t e = b.thread(); e < bias.size(); e += b.threads()) b.prefetch(&bias[e]);
  }

  /// What is added to the base, shared (N, width), and zeros behind the stream's end. A warp makes two numbers of every
  /// row by one reading of the rows.
  template <class Block> MOESKIP_HD void make_part(const Block& b) const {
    constexpr int half = width / 2;
    float* const part = b.shared();
    const auto weights = [&](int i) { return first(b) + i < x.w.rows() ? &x.w(first(b) + i, 0) : nullptr; };
    const auto from = [&](index_t n) { return plain_rows{x.x, n}; };
    for (int i = b.warp(); i < half; i += b.warps())
      products_of_rows<2>(b, {weights(i), weights(i + half)}, int(x.w.cols()), 0, x.x.rows(), from,
                          [&](index_t n, const float(&made)[2]) {
                            part[n * width + i] = made[0], part[n * width + i + half] = made[1];
                          });
  }

  /// The stream's numbers, where they belong and shared.
  template <class Block> MOESKIP_HD void add_base(const Block& b) const {
    for (int item = b.thread(); item < int(x.y.rows()) * width; item += b.threads()) {
      const int n = item / width, i = first(b) + item % width;
      if (i >= x.y.cols()) continue;
      float& made = b.shared()[item];
      if (x.base.data()) made += x.base(n, i);
      x.y(n, i) = made;
    }
  }

  template <class Block> MOESKIP_HD void bring_sums(const Block& b) const {
    const int S = int(scorers.rows());
    for (int item = b.thread(); item < int(x.y.rows()) * sums_of_row(S); item += b.threads()) {
      const float* const part = b.shared() + item / sums_of_row(S) * width;
      const int s = item % sums_of_row(S);
      float factor[width], of_gain[width], sum = 0;
      if (s < S) {
        load_pack(factor, &scorers(s, 0), first(b), gain.size());
        load_pack(of_gain, gain.data(), first(b), gain.size());
        for (int i = 0; i < width; ++i) factor[i] *= of_gain[i];
      } else {
        for (int i = 0; i < width; ++i) factor[i] = part[i];
      }
      for (int i = 0; i < width; ++i) sum += part[i] * factor[i];
      sums.part(b, item) = sum;
    }
  }

  /// By the last block. A function of its own, so that its registers are not those of the product too.
  template <class Block> [[gnu::noinline]] MOESKIP_HD void alone(const Block& b) const {
    const int N = int(logits.rows()), S = int(logits.cols());
    float* const scales = b.shared() + 1;  // (N), until something is sorted
    for (int n = b.thread(); n < N; n += b.threads()) scales[n] = scale(n);
    for (int item = b.thread(); item < N * S; item += b.threads()) {
      const int n = item / S;
      logits.data()[item] = sums.total(n * sums_of_row(S) + item % S) * scale(n);
    }
    const vec<const float> wide = widened(b);
    b.sync(6);
    rows.run(b, routing_step::score, wide);
    if (route<R>::in_order) b.sync(7);  // else a warp chooses for the rows that it scored
    rows.run(b, routing_step::choose, wide);
    norm(b, scales);
    b.sync(8);
    rows.run(b, routing_step::weigh, wide);
    note(b);
    if (sort.d.experts() > 0) sort.run(b, 9);
  }

  /// 1 / rms of row n.
  MOESKIP_HD float scale(int n) const {
    const int S = int(scorers.rows());
    return 1 / std::sqrt(sums.total(n * sums_of_row(S) + S) / float(gain.size()) + eps);
  }
  /// h; by the warps that route no row, where these are no fewer. A pack a turn: with two the kernel that follows scripts
  /// has too few registers.
  template <class Block> MOESKIP_HD void norm(const Block& b, const float* scales) const {
    const int N = int(h.rows()), D = int(h.cols()), packs = (D + pack - 1) / pack;
    const int busy = 2 * N <= b.warps() ? N : 0;
    if (b.warp() < busy) return;
    for (int item = b.thread() - 32 * busy; item < N * packs; item += b.threads() - 32 * busy) {
      const int n = item / packs, i = item % packs * pack;
      float value[pack], of_gain[pack];
      load_pack(value, &x.y(n, 0), i, D), load_pack(of_gain, gain.data(), i, D);
      for (int j = 0; j < pack; ++j) value[j] *= scales[n] * of_gain[j];
      store_pack(&h(n, 0), i, D, value);
    }
  }
  /// The bias as numbers; shared.
  template <class Block> MOESKIP_HD vec<const float> widened(const Block& b) const {
    float* const wide = b.shared() + sort_choices::shared(bias.size());
    for (index_t e = b.thread(); e < bias.size(); e += b.threads()) wide[e] = to<float>(bias[e]);
    return {bias.size() ? wide : nullptr, bias.size()};
  }
};

}  // namespace phase

template <> struct kernel<norm_route_t, on_cuda> {
  /// Whether a product of N rows that is due is made in one go with what follows.
  template <class R> static constexpr bool joins(index_t N) {
    return logits_per_expert<R> != 0 && !ChoosesRows<R> && N <= detail::invariant_rows;
  }
  template <class B, class W, class R, class Memory>
  static void run(B& b, dispatch& d, mat<float> h, mat<float> logits, const routing<float>& r,
                  const late_product<float, W>& x, const router_weights<W>& w, float eps, const R& router,
                  const routing_call<float>& c, index_t capacity, Memory& memory) {
    using call = detail::device_call<norm_route_t, B>;
    if constexpr (joins<R>(1))
      if (x.due() && joins<R>(x.y.rows())) {
        const index_t E = r.load.size(), N = x.y.rows();
        if (capacity != norm_route_t::unsorted) d = detail::room_for_choices(r.chosen, int(E), memory);
        detail::expect_seen<call>(r);
        call::seen(x.y), call::seen(x.base), call::seen(x.x), call::seen(x.w);
        const auto here = detail::listed_call<call>(c);
        const auto scope = call::scratch().scope();
        using phase_t = phase::project_route<W, R>;
        const index_t blocks = phase_t::blocks(x.w.rows());
        call::launch(
            {blocks, phase_t::threads, phase_t::shared(N, E)},
            phase_t{.x = x,
                    .h = call::seen(h),
                    .logits = call::seen(logits),
                    .gain = call::seen(w.norm),
                    .scorers = call::seen(w.rows),
                    .eps = eps,
                    .sums = detail::sums_of<call>(blocks, N * phase_t::sums_of_row(int(w.rows.rows()))),
                    .rows = {r, logits, router, here},
                    .bias = call::seen(w.bias),
                    .note = detail::noting<call>(r, here),
                    .sort = {call::seen(d), r.chosen, detail::int_capacity(r.chosen, capacity), call::visits()}});
        return;
      }
    d = norm_route_t::by_parts(b, h, logits, r, x, w, eps, router, c, capacity, memory);
  }
};

}  // namespace moeskip
