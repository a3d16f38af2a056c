// Decoding a model larger than the caches, against the bandwidth that the same program reads with.
#pragma once

#include <span>

#include "../limits.hpp"
#include "shapes.hpp"

namespace bench {

/// Plain decoding of a few tokens in turn with streaming reads.
struct decode_reading {
  double bytes_per_token = 0;                   // of weights that must be read
  std::vector<double> reads, rates, fractions;  // bytes/s; tokens/s; bytes/s that decoding reads with, of those
  std::string remark;                           // where the reads varied

  /// `pairs` of them, after one to warm up; the streaming reads are of these bytes.
  template <class V> decode_reading(ms::model<V, weights_in_bf16>& m, std::span<const std::byte> bytes, int pairs)
      : bytes_per_token(double(ms::footprint(m).bytes_per_token)) {
    constexpr int tokens = 16;
    ms::session<V, weights_in_bf16> session(m);
    const std::vector<int> prompt{1, 2, 3, 4, 5, 6, 7, 8};
    const auto read_rate = [&] {
      return double(bytes.size()) / time_of([&] { stream_read(bytes.data(), bytes.size()); });
    };
    for (int pair = -1; pair < pairs; ++pair) {
      const double before = read_rate();
      const auto text = ms::generate(session, prompt, {.max_new_tokens = tokens}, ms::decoder::autoregressive{},
                                     [](const ms::emitted&) {});
      const double after = read_rate();
      if (pair < 0) continue;
      reads.push_back(before), reads.push_back(after);
      rates.push_back(text.stats.tokens_per_second());
      fractions.push_back(bytes_per_token * rates.back() / ((before + after) / 2));
    }
    if (const double varied = spread(reads); varied > 0.1)
      remark = ms::text("unsteady: the streaming read varied by ", int(100 * varied), " %");
  }
};

/// Plain decoding, bf16 weights: bytes that must be read for a token, per second, over the streaming read beside it.
inline void plain_decode(report& out, ms::model<in_memory, weights_in_bf16>& m) {
  const decode_reading r(m, std::as_bytes(std::span(m.block().data(), std::size_t(m.block().size()) / 2)), 15);
  out.line("read.bandwidth", median(r.reads) / 1e9, "GB/s", "", r.remark);
  out.line("decode.tokens_per_second", median(r.rates), "tokens/s");
  out.line("decode.bytes_per_token", r.bytes_per_token / 1e6, "MB");
  out.line("decode.bandwidth_fraction", median(r.fractions), "ratio", "read.bandwidth", r.remark);
}

/// The time of a call of t rows over that of one row, and over the ratio of the bytes that it reads: the experts that
/// its rows, of tokens that have nothing to do with each other, visit together.
inline void verify(report& out, ms::model<in_memory, weights_in_bf16>& m) {
  constexpr int pairs = 15, at = 63;
  ms::session<in_memory, weights_in_bf16> s(m);
  std::vector<int> prompt, next;
  for (int i = 0; i <= at; ++i) prompt.push_back(i * 37 % m.sizes().vocab);
  for (int n = 0; n < 8; ++n) next.push_back(prompt[std::size_t(n)] + 11 * n);
  s.prefill(prompt);
  const ms::mat<float> x = s.memory().take<float>(8, m.sizes().dim),
                       logits = s.memory().take<float>(8, m.sizes().vocab);
  const auto call = [&](int rows) {
    return time_of([&] {
      s.embed(x.rows(0, rows), {next.data(), rows}, at);
      s.run(0, m.layers(), x.rows(0, rows), at);
      s.logits(logits.rows(0, rows), x.rows(0, rows), m.layers());
    });
  };
  const double expert = 3.0 * m.sizes().ffn * m.sizes().dim * sizeof(ms::bf16);
  const double one_row = double(ms::footprint(m).bytes_per_token);
  for (const int rows : {2, 4, 8}) {
    s.meter().reset_experts_read(), call(rows);
    const double further = double(s.meter().experts_read()) - m.layers() * in_memory::router::experts_per_token;
    const double bytes = (one_row + further * expert) / one_row;
    std::vector<double> ratios;
    for (int pair = -1; pair < pairs; ++pair) {
      const double one = call(1), many = call(rows), again = call(1);
      if (pair >= 0) ratios.push_back(2 * many / (one + again));
    }
    const std::string name = ms::text("verify_", rows);
    out.line(name + ".bytes", bytes, "ratio", "one row");
    out.line(name + ".time", median(ratios), "ratio", "one row");
    out.line(name + ".over_bytes", median(ratios) / bytes, "ratio", name + ".bytes");
  }
}

}  // namespace bench
