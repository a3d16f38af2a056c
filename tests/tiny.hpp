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

template <class T> std::vector<T> random_values(std::size_t count, std::uint64_t seed) {
  std::vector<T> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = T(random_number(seed, i));
  return values;
}

/// Speculation that does not depend on how fast the machine is.
using fixed_length = ms::speculative_decoder::compose<ms::draft::self, ms::acceptance::exact, ms::draft_length::fixed>;

}  // namespace tests
