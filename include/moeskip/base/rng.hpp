// Counter-based randomness: a draw is a pure function of (seed, purpose, step, layer, token, expert). Masks
// are therefore re-drawn wherever they are needed (backward pass, replay, another backend) and never stored.
//   Philox4x32-10: ten rounds of two 32 x 32 -> 64 bit products over a 128-bit counter under a 64-bit key
// Source: Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3 (SC'11).
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

#include "moeskip/base/config.hpp"

namespace moeskip {

/// Four 32-bit words: the counter of a block, and the random bits that come out of it.
struct philox_block {
  std::uint32_t word[4];

  friend constexpr bool operator==(const philox_block&, const philox_block&) = default;
};

/// Philox4x32-10: 128 random bits for each counter and key.
MOESKIP_HD constexpr philox_block philox(philox_block counter, std::uint64_t key) {
  constexpr std::uint64_t multiplier0 = 0xD2511F53u, multiplier1 = 0xCD9E8D57u;
  std::uint32_t key0 = static_cast<std::uint32_t>(key), key1 = static_cast<std::uint32_t>(key >> 32);
  std::uint32_t c0 = counter.word[0], c1 = counter.word[1], c2 = counter.word[2], c3 = counter.word[3];
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = multiplier0 * c0, product1 = multiplier1 * c2;
    c0 = static_cast<std::uint32_t>(product1 >> 32) ^ c1 ^ key0;
    c1 = static_cast<std::uint32_t>(product1);
    c2 = static_cast<std::uint32_t>(product0 >> 32) ^ c3 ^ key1;
    c3 = static_cast<std::uint32_t>(product0);
    key0 += 0x9E3779B9u;  // golden ratio
    key1 += 0xBB67AE85u;  // sqrt(3) - 1
  }
  return {{c0, c1, c2, c3}};
}

/// The same for N counters of one key, word by word: counter[w][i] is word w of the i-th, on return its random bits.
/// The loops over i are what compilers turn into vectors.
template <int N> void philox_lanes(std::uint32_t (&counter)[4][N], std::uint64_t key) {
  auto& [c0, c1, c2, c3] = counter;
  std::uint32_t key0 = static_cast<std::uint32_t>(key), key1 = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < N; ++i) {
      const std::uint64_t product0 = std::uint64_t{0xD2511F53u} * c0[i], product1 = std::uint64_t{0xCD9E8D57u} * c2[i];
      c0[i] = static_cast<std::uint32_t>(product1 >> 32) ^ c1[i] ^ key0;
      c1[i] = static_cast<std::uint32_t>(product1);
      c2[i] = static_cast<std::uint32_t>(product0 >> 32) ^ c3[i] ^ key1;
      c3[i] = static_cast<std::uint32_t>(product0);
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

/// A strong type: a number passed where a seed is meant says so.
struct seed {
  std::uint64_t value;

  friend constexpr bool operator==(const seed&, const seed&) = default;
};

/// What a draw is for; different purposes never share bits. The numbers are part of what makes a run
/// repeatable: append, never renumber.
enum class stream : std::uint32_t {
  weights = 0,         // initial values
  data = 1,            // which text a batch takes
  expert_dropout = 2,  //
  layer_dropout = 3,   //
  sampling = 4,        // the next token
  draft = 5,           // a speculated token
  acceptance = 6,      // accept or reject a speculated token
  user = 7,            // free
  router_noise = 9,    // noisy routing
  hash_routing = 10,   // which experts a vocabulary id goes to
  layer_gates = 11,    // whether a token passes a layer by, while that is learned
  // Whose output a token does without, and which units of an expert:
  expert_output = 16,
  expert_activation = 17,
};

/// Draws for one purpose. The seed is the key; purpose and coordinates fill the 128-bit counter side by side,
/// so that different draws never collide while the coordinates stay within
///   step < 2^40   layer < 2^16   token < 2^40   expert < 2^24   (purpose < 2^8)
/// A coordinate that does not matter is 0. What each one counts is up to the purpose: initial weights take
/// step as the number of the tensor and token as that of the element. bits, uniform and their kin read the
/// same block: two draws at the same coordinates are one draw, not two independent ones.
struct draws {
  seed from;
  stream purpose;

  /// What block() turns into random bits under the seed's key.
  MOESKIP_HD constexpr philox_block counter(std::uint64_t step, std::uint64_t layer = 0, std::uint64_t token = 0,
                                            std::uint64_t expert = 0) const {
    const std::uint64_t low = token | expert << 40;
    const std::uint64_t high = step | layer << 40 | static_cast<std::uint64_t>(purpose) << 56;
    return {{static_cast<std::uint32_t>(low), static_cast<std::uint32_t>(low >> 32), static_cast<std::uint32_t>(high),
             static_cast<std::uint32_t>(high >> 32)}};
  }

  /// All 128 bits.
  MOESKIP_HD constexpr philox_block block(std::uint64_t step, std::uint64_t layer = 0, std::uint64_t token = 0,
                                          std::uint64_t expert = 0) const {
    return philox(counter(step, layer, token, expert), from.value);
  }

  MOESKIP_HD constexpr std::uint32_t bits(std::uint64_t step, std::uint64_t layer = 0, std::uint64_t token = 0,
                                          std::uint64_t expert = 0) const {
    return block(step, layer, token, expert).word[0];
  }

  /// A multiple of 2^-24 in [0, 1).
  MOESKIP_HD constexpr float uniform(std::uint64_t step, std::uint64_t layer = 0, std::uint64_t token = 0,
                                     std::uint64_t expert = 0) const {
    return static_cast<float>(bits(step, layer, token, expert) >> 8) * 0x1p-24f;
  }

  /// A multiple of 2^-53 in [0, 1).
  MOESKIP_HD constexpr double uniform_double(std::uint64_t step, std::uint64_t layer = 0, std::uint64_t token = 0,
                                             std::uint64_t expert = 0) const {
    const philox_block random = block(step, layer, token, expert);
    return fraction(random.word[0], random.word[1]);
  }

  /// A whole number in [0, n), for n <= 2^53; no number is favoured by more than n / 2^53.
  MOESKIP_HD constexpr std::uint64_t below(std::uint64_t n, std::uint64_t step, std::uint64_t layer = 0,
                                           std::uint64_t token = 0, std::uint64_t expert = 0) const {
    return static_cast<std::uint64_t>(uniform_double(step, layer, token, expert) * static_cast<double>(n));
  }

  /// Standard normal (mean 0, variance 1), after Box and Muller; at most 8.6 in magnitude. The logarithm
  /// and cosine of other machines may differ in the last bit.
  MOESKIP_HD float normal(std::uint64_t step, std::uint64_t layer = 0, std::uint64_t token = 0,
                          std::uint64_t expert = 0) const {
    const philox_block random = block(step, layer, token, expert);
    const double radius = std::sqrt(-2.0 * std::log(1.0 - fraction(random.word[0], random.word[1])));
    const double angle = 2.0 * std::numbers::pi * fraction(random.word[2], random.word[3]);
    return static_cast<float>(radius * std::cos(angle));
  }

 private:
  /// 53 of 64 random bits as a number in [0, 1).
  MOESKIP_HD static constexpr double fraction(std::uint32_t low, std::uint32_t high) {
    return static_cast<double>((static_cast<std::uint64_t>(high) << 32 | low) >> 11) * 0x1p-53;
  }
};

}  // namespace moeskip
