// What a decoder samples against what it should: counts of generated texts beside the full model's exact probabilities.
// The chi-square statistic must stay below its 99.9 % quantile; a decoder that accepts everything must exceed it by
// far.
#pragma once

#include <cmath>
#include <vector>

#include "tiny.hpp"

namespace tests {

struct sampled_variant : ms::variant {};
using sampled_model = ms::model<sampled_variant, ms::cpu<float>>;

inline constexpr int sampled_vocab = 5;
inline constexpr ms::config<sampled_variant> sampled_shape{
    .sizes = {.layers = 4, .dim = 24, .heads = 3, .ffn = 16, .experts = 4, .vocab = sampled_vocab, .context = 16},
    .exits = ms::exits_after(1, 2)};

/// Accepts every drafted token: fast, and wrong.
struct always {
  static constexpr std::string_view name = "always";
  template <class T> bool accepts(ms::vec<const T>, ms::vec<const T>, int, double) const { return true; }
  template <class T> void residual(ms::vec<T> out, ms::vec<const T> p, ms::vec<const T>) const {
    std::copy(p.begin(), p.end(), out.begin());
  }
};

/// Sharper than freshly drawn weights, so that the draft and the full model disagree.
inline void sharpen(sampled_model& m) {
  for (float& w : m.block()) w *= 1.6f;
}

/// The full model's distribution of the next token after `tokens`.
inline std::vector<float> next_distribution(ms::session<sampled_variant, ms::cpu<float>>& s, ms::sampler& sampler,
                                            const std::vector<int>& tokens) {
  s.prefill(tokens);
  const auto scope = s.memory().scope();
  ms::mat<float> x = s.memory().take<float>(1, sampled_shape.sizes.dim),
                 logits = s.memory().take<float>(1, sampled_vocab);
  s.embed(x);
  s.run(0, sampled_shape.sizes.layers, x, s.position());
  s.logits(logits, x, sampled_shape.sizes.layers);
  std::vector<float> p(sampled_vocab);
  sampler.distribution<float>({p.data(), sampled_vocab}, logits.row(0));
  return p;
}

/// Chi-square of three generated tokens' joint counts behind the prompt against the exact joint probabilities;
/// `degrees`: of freedom.
template <class Decoder> double chi_square(const Decoder& decoder, ms::sampling options, int& degrees,
                                           const std::vector<int>& prompt = {3, 1}, int draws = 40000) {
  sampled_model m(sampled_shape, ms::seed{11});
  sharpen(m);
  constexpr int outcomes = sampled_vocab * sampled_vocab * sampled_vocab;
  std::vector<double> expected(outcomes), observed(outcomes);
  ms::session s(m);
  ms::sampler sampler(options);
  const auto after = [&](std::initializer_list<int> more) {
    std::vector<int> text = prompt;
    text.insert(text.end(), more);
    return next_distribution(s, sampler, text);
  };
  for (int a = 0; a < sampled_vocab; ++a)
    for (int b = 0; b < sampled_vocab; ++b) {
      const float pa = after({})[std::size_t(a)];
      const float pb = after({a})[std::size_t(b)];
      const auto pc = after({a, b});
      for (int c = 0; c < sampled_vocab; ++c)
        expected[std::size_t((a * sampled_vocab + b) * sampled_vocab + c)] =
            double(pa) * double(pb) * double(pc[std::size_t(c)]) * draws;
    }
  for (int i = 0; i < draws; ++i) {
    options.seed = {std::uint64_t(i)};
    const auto ids =
        ms::generate(s, prompt, {.max_new_tokens = 3, .sampling = options}, decoder, [](const ms::emitted&) {}).ids();
    ++observed[std::size_t((ids[0] * sampled_vocab + ids[1]) * sampled_vocab + ids[2])];
  }
  // Rare outcomes are counted together, as the test demands; an impossible one settles it.
  double statistic = 0, rare_expected = 0, rare_observed = 0;
  bool impossible = false;
  degrees = -1;
  for (int i = 0; i < outcomes; ++i) {
    const double e = expected[std::size_t(i)], o = observed[std::size_t(i)];
    if (e < 1e-9 && o > 0) impossible = true;
    if (e < 8) {
      rare_expected += e, rare_observed += o;
      continue;
    }
    statistic += (o - e) * (o - e) / e, ++degrees;
  }
  if (rare_expected >= 8) statistic += std::pow(rare_observed - rare_expected, 2) / rare_expected, ++degrees;
  return impossible ? INFINITY : statistic;
}

/// 99.9 % quantile of chi-square, by Wilson and Hilferty's cube.
inline double quantile(int degrees) {
  const double k = degrees, z = 3.0902;
  return k * std::pow(1 - 2 / (9 * k) + z * std::sqrt(2 / (9 * k)), 3);
}

}  // namespace tests
