// What it would be worth to draft_length::utility to know the experts of a verify's rows beforehand, by bytes along a
// trace: its rule of worths, once with the mean union of n tokens and once with the rows' own union. Both know how
// often each confidence is accepted, at an exit chosen in hindsight; behind a wrong draft the experts are those of the
// text's own tokens.
#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "bytes.hpp"

namespace bench {

enum class known_experts { on_average, exactly };

/// Speed-up over plain decoding of tokens from `first` on. A token is worth what it takes at the rate that is reached.
/// Throws config_error where fewer tokens follow than a round may have.
template <class V> double utility_by_bytes(const ms::config<V>& c, const trace& t, int first, known_experts known) {
  constexpr int longest = ms::draft_length::utility{}.longest();
  using upper_layers = std::array<double, longest + 2>;  // [rows]: weights that they read above the exit
  const int L = c.sizes.layers, last = t.tokens() - longest - 1;
  MOESKIP_CHECK(ms::config_error, last > first, "a trace to forecast lengths along: expected more than ",
                first + longest + 1, " tokens, got ", t.tokens());
  const double head = ms::head_weights_read(c.sizes);
  const auto read = [&](int from, int to, int position, int rows) {
    double sum = 0;
    for (int l = from; l < to; ++l) sum += ms::layer_weights_read(c, l, detail::union_of(t, l, position, rows));
    return sum;
  };
  const double plain = read(0, L, first, 1) + head;
  double best = 0;
  for (const int e : t.readings.exits) {
    if (e < 2 || e >= L) continue;
    const double shallow = read(0, e, first, 1);
    ms::draft_length::acceptance_table accepted;
    std::vector<upper_layers> own(static_cast<std::size_t>(last));  // [position of a round's first row]
    upper_layers mean{};
    for (int at = first; at < last; ++at) {
      accepted.record(t.confidence(at, e), t.predicted(at, e) == t.next(at));
      for (std::size_t rows = 1; rows < mean.size(); ++rows) {
        own[std::size_t(at)][rows] = read(e, L, at, int(rows));
        mean[rows] += own[std::size_t(at)][rows] / (last - first);
      }
    }
    double speedup = 1;
    for (int repeat = 0; repeat < 8; ++repeat) {          // towards the rate that it brings itself
      const double rate = std::max(1., speedup) / plain;  // tokens a weight
      const auto one_more = [&](const upper_layers& upper, int rows) {
        return rate * (shallow + upper[std::size_t(rows)] - upper[std::size_t(rows) - 1]);
      };
      ms::draft_length::utility::worth worth;
      const auto compute = [&](const upper_layers& upper) {
        worth.compute(accepted, longest, rate * head, [&](int rows) { return one_more(upper, rows); });
      };
      if (known == known_experts::on_average) compute(mean);
      double weights = 0;
      int made = 0;
      for (int at = first; at < last;) {
        const upper_layers& mine = own[std::size_t(at)];
        const upper_layers& upper = known == known_experts::exactly ? mine : mean;
        if (known == known_experts::exactly) compute(mine);
        double survival = 1;
        int verified = 0;
        for (bool more = worth(0, 1) > 0; more && verified < longest;) {
          weights += head;
          survival *= accepted.expected(t.confidence(at + verified, e));
          const double further = worth(verified + 1, survival);
          if (survival - one_more(upper, verified + 2) + std::max(0., further) <= 0) break;
          ++verified, more = further > 0;
        }
        weights += (verified + 1) * shallow + mine[std::size_t(verified) + 1] + head;
        int right = 0;
        while (right < verified && t.predicted(at + right, e) == t.next(at + right)) ++right;
        at += right + 1, made += right + 1;
      }
      speedup = made * plain / weights;
    }
    best = std::max(best, speedup);
  }
  return best;
}

}  // namespace bench
