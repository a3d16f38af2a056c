// What it would be worth to draft_length::utility to know the experts of a verify's rows beforehand, by bytes along a trace:
// the same rule, once with the mean union of n tokens, as the default decoder has it, and once with the rows' own. The
// latter is more than any prediction can give.
#pragma once

#include <algorithm>
#include <array>

#include "bytes.hpp"

namespace bench {

enum class known_experts { on_average, exactly };

/// Speed-up over plain decoding of tokens from `first` on, at the best exit in hindsight. A token is drafted and verified
/// while that is worth its bytes at the rate reached, acceptance by confidence being known.
template <class V> double utility_by_bytes(const ms::config<V>& c, const trace& t, int first, known_experts knows) {
  constexpr int longest = ms::draft_length::utility{}.longest();
  const int L = c.sizes.layers;
  const double head = ms::head_weights_read(c.sizes);
  const auto read = [&](int from, int to, int position, int rows) {
    double sum = 0;
    for (int l = from; l < to; ++l) sum += ms::layer_weights_read(c, l, detail::union_of(t, l, position, rows));
    return sum;
  };
  const double plain = read(0, L, first, 1) + head;
  double best = 1;
  for (const int e : t.readings.exits) {
    if (e < 2 || e >= L) continue;
    const int last = t.tokens() - longest - 1;
    ms::draft_length::acceptance_table accepted;
    std::array<double, longest + 2> mean{};  // [rows]: weights of the upper layers
    for (int at = first; at < last; ++at) {
      accepted.record(t.confidence(at, e), t.predicted(at, e) == t.next(at));
      for (int n = 1; n <= longest + 1; ++n) mean[std::size_t(n)] += read(e, L, at, n) / (last - first);
    }
    const double shallow = read(0, e, first, 1);
    const auto one_more = [&](int at, int rows) {  // weights
      if (knows == known_experts::exactly) return shallow + read(e, L, at, rows) - read(e, L, at, rows - 1);
      return shallow + mean[std::size_t(rows)] - mean[std::size_t(rows) - 1];
    };
    double speedup = 1;
    for (int repeat = 0; repeat < 5; ++repeat) {
      const double rate = speedup / plain;  // tokens a weight
      double weights = 0;
      int made = 0;
      for (int at = first; at < last;) {
        double survival = 1;
        int drafted = 0;
        while (drafted < longest) {
          const double costs = rate * one_more(at, drafted + 2);
          double hoped = 0;
          accepted.each([&](double share, double chance) { hoped += share * std::max(0., survival * chance - costs); });
          if (hoped <= rate * head) break;
          weights += head;
          survival *= accepted.expected(t.confidence(at + drafted, e));
          if (survival <= costs) break;
          ++drafted;
        }
        weights += (drafted + 1) * shallow + read(e, L, at, drafted + 1) + head;
        int right = 0;
        while (right < drafted && t.predicted(at + right, e) == t.next(at + right)) ++right;
        at += right + 1, made += right + 1;
      }
      speedup = made * plain / weights;
      best = std::max(best, speedup);
    }
  }
  return best;
}

}  // namespace bench
