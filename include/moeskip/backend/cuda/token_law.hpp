// Laws of tokens, a block a row: the most likely token in one pass over the vocabulary, sums in a second. A cut to the
// most likely tokens needs no sorting: eight passes find the lowest kept logit four bits at a time, and one looks for
// its equals.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "moeskip/backend/cuda/backend.hpp"
#include "moeskip/backend/cuda/block.hpp"
#include "moeskip/ops/token_law.hpp"

namespace moeskip {

namespace phase {

/// The highest logit of some, its id, and the highest of the others.
struct row_peak {
  float highest = -INFINITY, second = -INFINITY;
  int id = -1;
  /// NaN is never higher.
  MOESKIP_HD void add(float logit, int at) {
    if (logit > highest) second = highest, highest = logit, id = at;
    else if (logit > second) second = logit;
  }
  MOESKIP_HD void add(const row_peak& more) {
    const bool wins = more.highest > highest || (more.highest == highest && more.id < id);
    const float loser = wins ? highest : more.highest, next = wins ? more.second : second;
    if (wins) highest = more.highest, id = more.id;
    second = loser > next ? loser : next;
  }
};

/// Floats as whole numbers of the same order.
MOESKIP_HD inline std::uint32_t order_key(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x + 0.f);  // + 0: there is one zero
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
MOESKIP_HD inline float of_order_key(std::uint32_t key) {
  return std::bit_cast<float>(key >> 31 ? key & 0x7fffffffu : ~key);
}

struct token_laws {
  static constexpr const char* name = "token_laws";
  static constexpr int barriers = 6, bins = 16;
  static constexpr int place_of_bins = 9;                                               // in sums of up to 32 warps
  static constexpr index_t shared = 32 * (place_of_bins + bins) + bins * index_t{512};  // floats, of up to 512 threads
  vec<token_law<float>> laws;
  mat<const float> logits;
  float slope;  // 1 / temperature, 0: greedy
  int top_k;
  float top_p;
  bool for_rules;

  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    const float* row = &logits(b.block(), 0);
    const index_t V = logits.cols();
    const row_peak peak = peak_of(b, row, V);
    token_law<float> law;
    law.best = std::isfinite(peak.highest) ? peak.id : -1, law.highest = peak.highest, law.second = peak.second;
    law.slope = slope, law.least = -INFINITY, law.last = std::numeric_limits<int>::max();
    if (for_rules) {
      float sums[2] = {};  // mass, weighted
      for (index_t v = b.thread(); law.best >= 0 && v < V; v += b.threads()) {
        const float d = row[v] - law.highest, w = std::exp(d);
        if (w > 0) sums[0] += w, sums[1] += d * w;  // not where it is NaN
      }
      block_sums(b, sums, 3, 1);
      law.mass = sums[0], law.weighted = sums[1];
    }
    law.total = slope == 0 ? 1.f : total_of(b, law, row, V);
    if (law.best >= 0 && slope != 0) {
      if (top_k > 0 && top_k < V) {
        keep(b, law, row, V, float(top_k), [&](index_t v) { return std::isnan(row[v]) ? 0.f : 1.f; });
        law.total = total_of(b, law, row, V);
      }
      if (top_p < 1) {
        const token_law<float> before = law;
        keep(b, law, row, V, top_p * law.total, [&](index_t v) { return before.weight(v, row[v]); });
        law.total = total_of(b, law, row, V);
      }
    }
    if (b.thread() == 0) laws[b.block()] = law;
  }

 private:
  template <class Block> MOESKIP_HD static row_peak peak_of(const Block& b, const float* row, index_t V) {
    constexpr int at_once = 8;  // logits asked for before they are compared
    row_peak mine;
    for (index_t first = b.thread(); first < V; first += at_once * b.threads()) {
      const auto id = [&](int j) { return first + j * b.threads(); };
      float value[at_once];
      unrolled<at_once>([&](auto j) { value[j] = id(j) < V ? row[id(j)] : 0.f; });
      unrolled<at_once>([&](auto j) {
        if (id(j) < V) mine.add(value[j], int(id(j)));
      });
    }
    for (int m = 16; m; m /= 2) {
      row_peak other;
      other.highest = b.warp_xor(mine.highest, m), other.second = b.warp_xor(mine.second, m);
      other.id = int(b.warp_xor(float(mine.id), m));  // exact: expect_ids()
      mine.add(other);
    }
    float *highest = b.shared(), *second = highest + 32, *id = second + 32;
    if (b.lane() == 0) highest[b.warp()] = mine.highest, second[b.warp()] = mine.second, id[b.warp()] = float(mine.id);
    b.sync(0);
    row_peak all;
    for (int w = 0; w < b.warps(); ++w) all.add({highest[w], second[w], int(id[w])});
    return all;
  }

  /// Σ of the weights that a law gives.
  template <class Block>
  MOESKIP_HD static float total_of(const Block& b, const token_law<float>& law, const float* row, index_t V) {
    float sum = 0;
    for (index_t v = b.thread(); law.best >= 0 && v < V; v += b.threads()) sum += law.weight(v, row[v]);
    return block_sum(b, sum, 5, 2);
  }

  /// Cuts a law to the most likely tokens whose weights reach `goal`.
  template <class Block, class Weight> MOESKIP_HD static void keep(const Block& b, token_law<float>& law,
                                                                   const float* row, index_t V, float goal,
                                                                   const Weight& weight) {
    const std::uint32_t least = highest_reaching(b, V, goal, weight, [&](index_t v) { return order_key(row[v]); });
    if (least == 0) return;  // rounding keeps all of them from it
    float seen[3] = {};      // the mass above it, how many are equal to it, and the sum of their ids
    for (index_t v = b.thread(); v < V; v += b.threads()) {
      const std::uint32_t k = order_key(row[v]);
      const float w = weight(v);
      if (k > least) seen[0] += w;
      else if (k == least && w > 0) seen[1] += 1, seen[2] += float(v);
    }
    block_sums(b, seen, 6, 3);
    // Among equals: the lower the id, the sooner.
    const std::uint32_t last =
        seen[1] == 1
            ? std::uint32_t(seen[2])
            : ~highest_reaching(
                  b, V, goal - seen[0], [&](index_t v) { return order_key(row[v]) == least ? weight(v) : 0.f; },
                  [](index_t v) { return ~std::uint32_t(v); });
    law.least = of_order_key(least);
    law.last = last == ~std::uint32_t{0} ? std::numeric_limits<int>::max() : int(last);
  }

  /// The highest key for which the weights of all keys from it on reach `goal`; 0 where none does.
  template <class Block, class Weight, class Key>
  MOESKIP_HD static std::uint32_t highest_reaching(const Block& b, index_t V, float goal, const Weight& weight,
                                                   const Key& key) {
    // Each thread's, side by side: threads of a warp meet different banks whatever they add to.
    float* mine = b.shared() + 32 * (place_of_bins + bins) + b.thread();
    std::uint32_t base = 0;
    for (int shift = 28; shift >= 0; shift -= 4) {
      for (int j = 0; j < bins; ++j) mine[j * b.threads()] = 0;
      for (index_t v = b.thread(); v < V; v += b.threads()) {
        const std::uint32_t k = key(v), digit = (k - base) >> shift;
        if (k >= base) mine[int(digit < bins ? digit : bins - 1) * b.threads()] += weight(v);
      }
      float sums[bins];
      for (int j = 0; j < bins; ++j) sums[j] = mine[j * b.threads()];
      block_sums(b, sums, place_of_bins, 4);
      float sum = 0;
      std::uint32_t digit = 0;
      for (std::uint32_t j = bins - 1; j > 0; --j)
        if (sum += sums[j]; digit == 0 && sum >= goal) digit = j;
      base += digit << shift;
      b.sync(5);
    }
    return base;
  }
};

}  // namespace phase

template <> struct kernel<token_laws_t, on_cuda> {
  template <class B>
  static void run(B&, vec<token_law<float>> laws, mat<const float> logits, const sampling& s, bool for_rules) {
    using call = detail::device_call<token_laws_t, B>;
    MOESKIP_CHECK(config_error, logits.cols() <= index_t{1} << 24, token_laws_t::name,
                  " on cuda: expected a vocabulary of at most 2^24 ids, got ", logits.cols());
    call::launch({logits.rows(), 256, phase::token_laws::shared},
                 phase::token_laws{call::seen(laws), call::seen(logits), s.greedy() ? 0.f : 1.f / s.temperature,
                                   s.top_k, s.top_p, for_rules});
  }
};

}  // namespace moeskip
