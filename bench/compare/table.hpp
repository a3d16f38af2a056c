// The table, for people and as JSON.
#pragma once

#include <cstdio>
#include <deque>
#include <string>
#include <vector>

#include "contest.hpp"

namespace bench {

/// "12.50"
inline std::string fixed(double value, int digits) {
  char out[64];
  std::snprintf(out, sizeof out, "%.*f", digits, value);
  return out;
}

/// Columns, the first one left, the others right.
inline std::string aligned(const std::vector<std::vector<std::string>>& rows) {
  const auto width = [](const std::string& s) {
    std::size_t n = 0;
    for (const char c : s) n += (c & 0xC0) != 0x80;
    return n;
  };
  std::vector<std::size_t> wide(rows.front().size());
  for (const auto& row : rows)
    for (std::size_t c = 0; c < row.size(); ++c) wide[c] = std::max(wide[c], width(row[c]));
  std::string out;
  for (const auto& row : rows) {
    for (std::size_t c = 0; c < row.size(); ++c) {
      const std::string space(wide[c] - width(row[c]), ' ');
      out += c == 0 ? row[c] + space : "  " + space + row[c];
    }
    out += "\n";
  }
  return out;
}

/// baseline: its row's place, or −1.
inline std::string table_of(const std::deque<contestant>& all, int baseline) {
  std::vector<std::vector<std::string>> rows{{"", "bits/byte", "tokens/s", "speed", "half of pairs", "of baseline",
                                              "layers", "experts", "MB", "MFLOP", "accepted", "same text"}};
  const double reference = baseline >= 0 ? all[std::size_t(baseline)].against.speedup() : 0;
  for (std::size_t i = 0; i < all.size(); ++i) {
    const contestant& c = all[i];
    const ms::decode_stats& s = c.against.sum;
    rows.push_back({c.name, fixed(c.bits, 3), fixed(c.tokens_per_second(), 0), fixed(c.against.speedup(), 2),
                    fixed(c.against.quantile(0.25), 2) + "–" + fixed(c.against.quantile(0.75), 2),
                    reference > 0 ? fixed(c.against.speedup() / reference, 2) : "–", fixed(c.layers(), 1),
                    fixed(c.experts(), 1), fixed(c.bytes() / 1e6, 2), fixed(c.flop() / 1e6, 2),
                    s.drafted ? fixed(100 * s.acceptance_rate(), 0) + " %" : "–",
                    c.texts ? fixed(100.0 * double(c.same) / double(c.texts), 0) + " %" : "–"});
  }
  return aligned(rows);
}

/// One line for each figure.
inline void write(report& out, const contestant& c) {
  const std::string name = "compare." + c.key + ".";
  out.quiet_line(name + "bits_per_byte", c.bits, "bits");
  out.quiet_line(name + "tokens_per_second", c.tokens_per_second(), "tokens/s");
  out.quiet_line(name + "speedup", c.against.speedup(), "ratio", "plain decoding of the model that skips",
                 ms::text("half of the pairs from ", c.against.quantile(0.25), " to ", c.against.quantile(0.75)));
  out.quiet_line(name + "layers_per_token", c.layers(), "layers");
  out.quiet_line(name + "experts_per_token", c.experts(), "experts", "", "distinct ones of each call");
  out.quiet_line(name + "bytes_per_token", c.bytes(), "bytes");
  out.quiet_line(name + "flop_per_token", c.flop(), "FLOP");
  if (c.against.sum.drafted) out.quiet_line(name + "acceptance", c.against.sum.acceptance_rate(), "ratio", "drafted");
  if (c.texts) out.quiet_line(name + "same_text", double(c.same) / double(c.texts), "ratio", "prompts");
}

}  // namespace bench
