// ctest: slow optimised
// Ten thousand prompts, each continued plainly and by one of the speculative decoders in turn: the same tokens. Every
// draft with every length, f32 and bf16, on models of many shapes.
#include <doctest/doctest.h>

#include "tiny.hpp"

using namespace tests;

namespace {

struct large : ms::variant {
  using router = ms::router::segment<ms::router::top_k<2>, 3, 1>;
};
struct small : ms::variant {};

template <class B> class prompts {
  using small_model = ms::model<small, B>;
  static constexpr std::uint64_t per_model = 100;

 public:
  /// Runs `count` prompts from number `from` on. Each decoder must have drafted, accepted and, but for the one whose
  /// draft is the whole model, rejected.
  void check(std::uint64_t from, std::uint64_t count) {
    std::vector<ms::decode_stats> seen(decoder_count);
    for (std::uint64_t i = from; i < from + count; i += per_model) {
      ms::config<large> c{.sizes = random_sizes(i)};
      c.exits = ms::exits_every(1, c.sizes.layers);
      ms::model<large, B> m(c, ms::seed{i});
      ms::config<small> c_small{.sizes = random_sizes(i + 1)};
      c_small.sizes.vocab = c.sizes.vocab;
      small_model drafting(c_small, ms::seed{i});
      for (auto& w : m.block()) w = ms::to<ms::weight_t<B>>(1.5f * float(w));  // texts are not all one token
      ms::session s(m);
      for (std::uint64_t p = i; p < i + per_model; ++p) {
        int number = 0;
        const std::vector<int> prompt = random_tokens(random_between(1, 12, p, 0), c.sizes.vocab, p);
        const ms::generation options{.max_new_tokens = random_between(1, 16, p, 1)};
        const auto run = [&](const auto& decoder) {
          return ms::generate(s, prompt, options, decoder, [](const ms::emitted&) {});
        };
        const std::vector<int> plain = run(ms::decoder::autoregressive{}).ids();
        each_decoder(drafting, c.sizes.layers, p, [&](const auto& decoder) {
          if (int(p) % decoder_count != number++) return;
          CAPTURE(p);
          CAPTURE(number);
          const ms::generated speculated = run(decoder);
          CHECK(speculated.ids() == plain);
          seen[std::size_t(number) - 1] += speculated.stats;
        });
        CHECK(number == decoder_count);
      }
    }
    for (int i = 0; i < decoder_count; ++i) {
      CAPTURE(i);
      const ms::decode_stats& s = seen[std::size_t(i)];
      CHECK(s.drafted > s.accepted);
      CHECK(s.accepted > 0);
    }
  }
  static constexpr int decoder_count = 28;

 private:
  template <class F> static void each_decoder(small_model& drafting, int layers, std::uint64_t p, F&& f) {
    const ms::draft::self shallow{.exit_layer = random_between(1, layers - 1, p, 2)};
    each_length(ms::draft::self{}, p, f);  // where the length chooses the exit, too
    each_length(shallow, p, f);
    each_length(ms::draft::self{.vocabulary = 2}, p, f);
    each_length(ms::draft::fewer_experts{.exit_layer = random_between(0, layers, p, 4)}, p, f);
    each_length(ms::draft::lookup{}, p, f);
    each_length(ms::draft::small_model<small_model>{&drafting}, p, f);
    each_length(ms::draft::either<ms::draft::lookup, ms::draft::self>{.second = shallow}, p, f);
  }
  template <class Draft, class F> static void each_length(const Draft& draft, std::uint64_t p, F&& f) {
    using namespace ms::draft_length;
    const int most = random_between(1, 8, p, 3);
    with(draft, fixed{.num_speculations = most}, f);
    with(draft, confidence{.num_speculations = most}, f);
    with(draft, adaptive{}, f);
    with(draft, utility{.num_speculations = most}, f);
  }
  template <class Draft, class Length, class F> static void with(const Draft& draft, const Length& length, F&& f) {
    f(ms::speculative_decoder::compose<Draft, ms::acceptance::exact, Length>{draft, length});
  }
};

}  // namespace

TEST_CASE("ten thousand prompts, greedy: speculation changes no token") {
  prompts<ms::cpu<float>>{}.check(0, 5000);
  prompts<ms::cpu<ms::bf16>>{}.check(5000, 5000);
}
