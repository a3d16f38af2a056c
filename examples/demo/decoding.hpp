// One prompt, three decoders: shown as the tokens arrive, then measured side by side.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "moeskip/eval/counted_session.hpp"
#include "moeskip/formats/tokenizer/byte.hpp"
#include "progress.hpp"
#include "shape.hpp"

namespace demo {

struct decoded {
  std::string name;
  ms::generated out{};          // every repetition gives the same
  std::vector<double> rates{};  // tokens per second, one for each repetition
  ms::stage_work work{};        // of one repetition

  double tokens_per_second() const {  // the median
    std::vector<double> sorted = rates;
    std::sort(sorted.begin(), sorted.end());
    return sorted[sorted.size() / 2];
  }
  double mean_exit_layer() const {
    double sum = 0;
    for (const ms::emitted& e : out.tokens) sum += e.exit_layer;
    return sum / double(out.tokens.size());
  }
  double layers_per_token() const { return double(out.stats.layer_steps) / out.stats.tokens; }
};

struct comparison {
  decoded plain{.name = "plain decoding"}, early_exit{.name = "early exit"}, speculative{.name = "self-speculation"};
};

/// From green, the first layers, to violet, the full depth.
inline colour colour_of_exit(int exit_layer, int layers) {
  constexpr colour palette[] = {green, cyan, blue, violet};
  return palette[(exit_layer - 1) * 4 / layers];
}

template <class B> class decoding {
 public:
  decoding(ms::model<variant, B>& m, const shape& s, std::string prompt, int tokens, const terminal& to)
      : model_(m),
        shape_(s),
        text_(std::move(prompt)),
        prompt_(ms::tokenizer::byte::encode(text_)),
        options_{.max_new_tokens = tokens},
        counted_(m),
        to_(to) {}

  /// Each decoder once, at the speed at which it works, every token in the colour of how it came about.
  void show() {
    const int layers = model_.layers();
    stream("plain decoding", {}, ms::decoder::autoregressive{}, [](const ms::emitted&) { return no_colour; });

    std::string legend = "tokens left after layer";
    for (int e = 1; e <= layers; ++e)
      if (e == layers || model_.configuration().exits.contains(e))
        legend += " " + to_.paint(colour_of_exit(e, layers), ms::text("■ ", e));
    stream("early exit", legend, shape_.early_exit,
           [&](const ms::emitted& e) { return colour_of_exit(e.exit_layer, layers); });

    stream("self-speculation",
           to_.paint(green, ms::text("■ drafted by fewer layers, accepted by ", layers)) + "  " +
               to_.paint(violet, ms::text("■ said by all ", layers)),
           shape_.speculative, [](const ms::emitted& e) { return e.drafted ? green : violet; });
  }

  /// Several interleaved repetitions without printing, so that a busy machine disturbs all alike: at least
  /// three, and up to eleven while they take less than ten seconds.
  comparison measure() {
    comparison c;
    const clock::time_point start = clock::now();
    for (int i = 0; i < 3 || (i < 11 && clock::now() - start < std::chrono::seconds(10)); ++i)
      time(c.plain, ms::decoder::autoregressive{}), time(c.early_exit, shape_.early_exit),
          time(c.speculative, shape_.speculative);
    return c;
  }

 private:
  template <class Decoder, class Colour>
  void stream(const char* name, const std::string& legend, const Decoder& decoder, Colour&& colour_of) {
    to_.print("\n  " + to_.bold(name) + (to_.coloured() && !legend.empty() ? "  " + legend : "") + "\n");
    text_box box(to_);
    ms::tokenizer::byte::stream characters;
    box.put(text_, grey);
    colour last = no_colour;
    ms::generate(counted_.session(), prompt_, options_, decoder,
                 [&](const ms::emitted& e) { box.put(characters.push(e.token), last = colour_of(e)); });
    box.put(characters.flush(), last);
    box.end();
  }

  template <class Decoder> void time(decoded& d, const Decoder& decoder) {
    counted_.done = {};
    d.out = ms::generate(counted_.session(), prompt_, options_, decoder, [](const ms::emitted&) {});
    d.rates.push_back(d.out.stats.tokens_per_second());
    d.work = counted_.done;
  }

  ms::model<variant, B>& model_;
  const shape& shape_;
  std::string text_;
  std::vector<int> prompt_;
  ms::generation options_;  // greedy: only then is "identical" a question about every single token
  ms::counted_session<variant, B> counted_;
  const terminal& to_;
};

/// One line for each decoder; slower than plain decoding is called slower.
inline void print_table(const comparison& c, const terminal& to) {
  const auto line = [&](std::string_view name, std::string_view rate, std::string_view speed, std::string_view exit,
                        std::string_view run, std::string_view accepted, std::string_view same) {
    return ms::text("  ", left(name, 17), right(rate, 9), "  ", left(speed, 15), right(exit, 5), right(run, 9),
                    right(accepted, 10), right(same, 9), "\n");
  };
  to.print(to.paint(grey, line("", "tokens/s", "against plain", "mean", "layers", "drafts", "same") +
                              line("", "(median)", "", "exit", "/token", "accepted", "text")));
  for (const decoded* d : {&c.plain, &c.early_exit, &c.speculative}) {
    const double ratio = d->tokens_per_second() / c.plain.tokens_per_second();
    const std::string speed = fixed(ratio, 2) + "x" + (ratio < 0.995 ? " (slower)" : "");
    const bool speculates = d->out.stats.drafted > 0;
    to.print(line(d->name, ms::grouped(ms::index_t(d->tokens_per_second())), speed, fixed(d->mean_exit_layer(), 2),
                  fixed(d->layers_per_token(), 2),
                  speculates ? fixed(100 * d->out.stats.acceptance_rate(), 1) + " %" : "–",
                  d->out.ids() == c.plain.out.ids() ? "yes" : "no"));
  }
}

}  // namespace demo
