// Small models and random data that the tests share.
#pragma once

#include <vector>

#include "moeskip/moeskip.hpp"

namespace tests {

namespace ms = moeskip;

/// Sizes with every feature on and no two extents equal, so that a mixed-up axis shows.
inline constexpr ms::sizes tiny_sizes{.layers = 4,
                                      .dim = 12,
                                      .heads = 6,
                                      .kv_heads = 3,
                                      .head_dim = 4,
                                      .ffn = 10,
                                      .experts = 5,
                                      .vocab = 17,
                                      .context = 32,
                                      .moe_every = 2,
                                      .dense_ffn = 14};

inline std::vector<int> random_tokens(int count, int vocab, std::uint64_t seed) {
  const ms::draws draw{{seed}, ms::stream::user};
  std::vector<int> tokens(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = int(draw.below(std::uint64_t(vocab), i));
  return tokens;
}

/// A random number in [-1, 1), the i-th of its seed.
inline double random_number(std::uint64_t seed, std::uint64_t i) {
  return 2 * ms::draws{{seed}, ms::stream::user}.uniform_double(i, 1) - 1;
}

/// A random integer from low to high, the i-th of its seed.
inline int random_between(int low, int high, std::uint64_t seed, std::uint64_t i) {
  return low + int(ms::draws{{seed}, ms::stream::user}.below(std::uint64_t(high - low + 1), i));
}

/// Sizes of small models of every shape, with a context of 64. They use up the numbers 0 to 9 of their seed.
inline ms::sizes random_sizes(std::uint64_t seed) {
  const auto pick = [&](int low, int high, std::uint64_t what) { return random_between(low, high, seed, what); };
  const int groups = pick(1, 3, 1), head = 2 * pick(1, 6, 2);
  return {.layers = pick(2, 6, 0),
          .dim = pick(5, 40, 3),
          .heads = groups * pick(1, 3, 4),
          .kv_heads = groups,
          .head_dim = head,
          .ffn = pick(3, 40, 5),
          .experts = pick(2, 9, 6),
          .vocab = pick(3, 60, 7),
          .context = 64,
          .moe_every = pick(1, 3, 8),
          .dense_ffn = pick(3, 40, 9)};
}

template <class T> std::vector<T> random_values(std::size_t count, std::uint64_t seed) {
  std::vector<T> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = T(random_number(seed, i));
  return values;
}

/// The auxiliary losses of one routing.
template <class B> ms::auxiliary_losses<ms::scalar_t<B>> losses_of(B& b, const ms::routing<ms::scalar_t<B>>& r,
                                                                   ms::mat<const ms::scalar_t<B>> logits,
                                                                   const ms::routing_call<ms::scalar_t<B>>& call,
                                                                   ms::arena& memory) {
  const auto sum = memory.take_zeroed<ms::auxiliary_losses<ms::scalar_t<B>>>(1);
  ms::balance_loss(b, sum, r, logits, call);
  ms::settle(b);
  return sum[0];
}

/// Speculation that does not depend on how fast the machine is.
using fixed_length = ms::speculative_decoder::compose<ms::draft::self, ms::acceptance::exact, ms::draft_length::fixed>;

}  // namespace tests
