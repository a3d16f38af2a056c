// The default decoder, which speculates only where that pays, against plain decoding. With random weights speculation has
// nothing to win, since the shallow layers know nothing of the deep ones: losses there are the price of trying.
//   bench_speculation [--model FILE --text FILE] [--json FILE]     FILE: NAME.safetensors that `./run study skip` leaves
#include <cmath>

#include "measure.hpp"
#include "moeskip/model/checkpoint.hpp"
#include "moeskip/moeskip.hpp"

namespace ms = moeskip;

namespace {

using B = ms::cpu<ms::bf16>;
struct plain : ms::variant {};
struct large : ms::variant {
  using router = ms::router::top_k<4>;
};

/// Lives in the caches: what a token costs is arithmetic and the start of parallel regions.
constexpr ms::config<plain> in_cache{
    .sizes =
        {.layers = 12, .dim = 128, .heads = 4, .kv_heads = 2, .ffn = 128, .experts = 16, .vocab = 256, .context = 512},
    .exits = ms::exits_every(2, 12)};
/// 280 MB of weights for a token.
constexpr ms::config<large> in_memory{.sizes = {.layers = 12,
                                                .dim = 1024,
                                                .heads = 16,
                                                .kv_heads = 4,
                                                .ffn = 512,
                                                .experts = 32,
                                                .vocab = 32000,
                                                .context = 512},
                                      .exits = ms::exits_every(2, 12)};

/// What the study's recipe `skip` trains.
struct skipping : ms::variant {
  using layer_dropout = ms::layer_dropout::exponential;
  using curriculum = ms::curriculum::rotational;
};

/// Plain decoding's time over the default decoder's, the median over some prompts, several times. Each session is new,
/// so that what was learned before does not help.
template <class V> double compare(bench::report& out, const std::string& name, ms::model<V, B>& m,
                                  const std::vector<std::vector<int>>& prompts, int tokens) {
  ms::session<V, B> steady(m);
  std::vector<double> ratios;
  ms::decode_stats sum;
  const auto run = [&](auto& session, const std::vector<int>& prompt, const auto& decoder) {
    return ms::generate(session, prompt, {.max_new_tokens = tokens}, decoder, [](const ms::emitted&) {}).stats;
  };
  for (int repeat = -1; repeat < 5; ++repeat)
    for (const std::vector<int>& prompt : prompts) {
      const double before = run(steady, prompt, ms::decoder::autoregressive{}).seconds;
      ms::session<V, B> fresh(m);
      const ms::decode_stats chosen = run(fresh, prompt, typename V::decoder{});
      const double after = run(steady, prompt, ms::decoder::autoregressive{}).seconds;
      if (repeat < 0) continue;  // warm-up
      ratios.push_back((before + after) / 2 / chosen.seconds);
      sum.tokens += chosen.tokens, sum.drafted += chosen.drafted, sum.accepted += chosen.accepted;
    }
  std::sort(ratios.begin(), ratios.end());
  const auto quantile = [&](double share) { return ratios[std::size_t(share * double(ratios.size() - 1))]; };
  out.line(ms::text("speculation.", name, ".drafted"), double(sum.drafted) / sum.tokens, "a token", "",
           ms::text(sum.accepted, " of ", sum.drafted, " accepted"));
  out.line(ms::text("speculation.", name, ".speedup"), quantile(0.5), "ratio", "plain decoding",
           ms::text("half of the pairs from ", quantile(0.25), " to ", quantile(0.75)));
  return quantile(0.5);
}

template <class V>
double random_weights(bench::report& out, const std::string& name, const ms::config<V>& c, int tokens) {
  ms::model<V, B> m(c, ms::seed{1});
  for (auto& w : m.block()) w = ms::bf16(1.5f * float(w));  // exits disagree, probabilities spread
  std::vector<std::vector<int>> prompts(3);
  for (int i = 0; i < 48; ++i) prompts[std::size_t(i) % 3].push_back((i * 37 + 5) % c.sizes.vocab);
  return compare(out, name, m, prompts, tokens);
}

/// A trained model, on places of a text that it has not seen.
double trained(bench::report& out, const std::string& model, const std::string& text) {
  ms::model<skipping, B> m = ms::load<skipping, B>(model);
  const std::vector<int> all = ms::tokenizer::byte::encode(ms::read_text(text));
  std::vector<std::vector<int>> prompts;
  constexpr std::size_t count = 8, length = 64;
  MOESKIP_CHECK(ms::config_error, all.size() >= count * length, text, ": expected at least ", count * length,
                " bytes, got ", all.size());
  for (std::size_t i = 0; i < count; ++i) {
    const auto from = all.begin() + std::ptrdiff_t(i * (all.size() - length) / count);
    prompts.emplace_back(from, from + std::ptrdiff_t(length));
  }
  return compare(out, "trained", m, prompts, m.sizes().context - int(length));
}

}  // namespace

int main(int argc, char** argv) {
  return bench::guarded([&] {
    // --model FILE --text FILE first: then that model is measured, too.
    std::string model, text;
    for (; argc > 2 && (std::string(argv[1]) == "--model" || std::string(argv[1]) == "--text"); argc -= 2, argv += 2)
      (std::string(argv[1]) == "--model" ? model : text) = argv[2];
    MOESKIP_CHECK(ms::config_error, model.empty() == text.empty(), "--model and --text go together");
    bench::report out(argc, argv);
    const double worst = std::min({model.empty() ? INFINITY : trained(out, model, text),
                                   random_weights(out, "random_in_cache", in_cache, 200),
                                   random_weights(out, "random_in_cache_long", in_cache, 480),
                                   random_weights(out, "random_in_memory", in_memory, 128)});
    out.line("speculation.worst_ratio", worst, "ratio", "plain decoding");
  });
}
