// Decoding a model larger than the caches, against the bandwidth that the same program reads with.
#include <cmath>

#include "limits.hpp"
#include "moeskip/moeskip.hpp"

namespace ms = moeskip;

namespace {

struct large : ms::variant {
  using router = ms::router::top_k<4>;
};

constexpr ms::config<large> shape{.sizes = {.layers = 12,
                                            .dim = 1024,
                                            .heads = 16,
                                            .kv_heads = 4,
                                            .ffn = 512,
                                            .experts = 32,
                                            .vocab = 32000,
                                            .context = 512}};
static_assert(ms::valid(shape));

constexpr int tokens = 16, pairs = 15;

/// Plain decoding, bf16 weights: bytes that must be read for a token, per second, over the streaming read
/// beside it.
void plain_decode(bench::report& out) {
  using B = ms::cpu<ms::bf16>;
  ms::model<large, B> m(shape, ms::seed{1});
  const double bytes = double(ms::footprint(m).bytes_per_token) * tokens;
  ms::session<large, B> session(m);
  const std::vector<int> prompt{1, 2, 3, 4, 5, 6, 7, 8};
  const auto* block = reinterpret_cast<const std::byte*>(m.block().data());
  const std::size_t read = std::size_t(m.block().size()) * sizeof(ms::bf16) / 2;

  std::vector<double> fractions, reads, rates;
  for (int pair = -1; pair < pairs; ++pair) {
    const double before = double(read) / bench::time_of([&] { bench::stream_read(block, read); });
    const auto text = ms::generate(session, prompt, {.max_new_tokens = tokens}, ms::decoder::autoregressive{},
                                   [](const ms::emitted&) {});
    const double after = double(read) / bench::time_of([&] { bench::stream_read(block, read); });
    if (pair < 0) continue;  // warm-up
    reads.push_back(before), reads.push_back(after);
    rates.push_back(text.stats.tokens_per_second());
    fractions.push_back(bytes / text.stats.seconds / ((before + after) / 2));
  }
  const double varied = bench::spread(reads);
  const std::string remark =
      varied > 0.1 ? ms::text("unsteady: the streaming read varied by ", int(100 * varied), " %") : "";
  out.line("read.bandwidth", bench::median(reads) / 1e9, "GB/s", "", remark);
  out.line("decode.tokens_per_second", bench::median(rates), "tokens/s");
  out.line("decode.bytes_per_token", bytes / tokens / 1e6, "MB");
  out.line("decode.bandwidth_fraction", bench::median(fractions), "ratio", "read.bandwidth", remark);
}

/// The time of a call of t rows over that of one row, and the ratio of the bytes that it must read when every row draws
/// its experts independently: E (1 − (1 − K/E)^t) distinct ones a layer.
void verify(bench::report& out) {
  using B = ms::cpu<ms::bf16>;
  ms::model<large, B> m(shape, ms::seed{1});
  ms::session<large, B> s(m);
  std::vector<int> prompt;
  for (int i = 0; i < 64; ++i) prompt.push_back(i * 37 % shape.sizes.vocab);
  s.prefill(prompt);
  ms::mat<float> x = s.memory().take<float>(8, shape.sizes.dim), logits = s.memory().take<float>(8, shape.sizes.vocab);
  std::vector<int> next;  // tokens that have nothing to do with each other
  for (int n = 0; n < 8; ++n) next.push_back(prompt[std::size_t(n)] + 11 * n);
  const auto call = [&](int rows) {
    return bench::time_of([&] {
      s.embed(x.rows(0, rows), {next.data(), rows}, 63);
      s.run(0, m.layers(), x.rows(0, rows), 63);
      s.logits(logits.rows(0, rows), x.rows(0, rows), m.layers());
    });
  };
  for (const int rows : {2, 4, 8}) {
    std::vector<double> ratios;
    for (int pair = -1; pair < pairs; ++pair) {
      const double one = call(1), many = call(rows), again = call(1);
      if (pair >= 0) ratios.push_back(2 * many / (one + again));
    }
    const double E = shape.sizes.experts, K = large::router::experts_per_token;
    const double expert = 3.0 * shape.sizes.ffn * shape.sizes.dim * sizeof(ms::bf16);
    const double distinct = E * (1 - std::pow(1 - K / E, rows)), one_row = double(ms::footprint(m).bytes_per_token);
    const double bytes = (one_row + m.layers() * (distinct - K) * expert) / one_row;
    out.line(ms::text("verify_", rows, ".bytes"), bytes, "ratio", "one row, by independent routing");
    out.line(ms::text("verify_", rows, ".time"), bench::median(ratios), "ratio", "one row");
  }
}

}  // namespace

int main(int argc, char** argv) {
  return bench::guarded([&] {
    bench::report out(argc, argv);
    plain_decode(out);
    verify(out);
  });
}
