// Dropout inside the experts' activations: unit f of what expert e computes for row n is 0 with probability p, and else
// divided by 1 − p. The draw hangs on (seed, step, layer, token, expert, unit) alone, so that backward repeats it and
// neither the rows beside this one nor their order in the dispatch matter.
//   A block of the generator serves 8 units with 16 bits each: p is rounded to a multiple of 2^-16.
//   F hidden width of an expert, up to 2^23
#pragma once

#include <algorithm>

#include "moeskip/base/rng.hpp"
#include "moeskip/tensor/rows.hpp"

namespace moeskip {

struct activation_mask {
  float p = 0;  // in [0, 1); 0: nothing is masked, and the rest does not matter
  seed from{};
  std::uint64_t step = 0;
  int layer = 0;      // under 128
  token_rows rows{};  // (N) of the call

  MOESKIP_HD bool masks() const { return p > 0; }
  /// What a unit that stays is multiplied by.
  MOESKIP_HD double scale() const { return 65536. / (65536 - threshold()); }

  /// factor (last − first) of units [first, last) of expert e for row n: 0 or scale().
  template <class T> void factors(T* factor, index_t n, int e, index_t first, index_t last) const {
    const std::uint64_t token = rows.id(n);
    const T kept = T(scale());
    const std::uint32_t limit = std::uint32_t(threshold());
    for (index_t start = first / units * units; start < last; start += lanes * units) {
      std::uint32_t random[4][lanes];
      for (int i = 0; i < lanes; ++i) {
        const philox_block c = counter(token, e, start / units + i);
        for (int w = 0; w < 4; ++w) random[w][i] = c.word[w];
      }
      philox_lanes(random, from.value);
      for (index_t f = std::max(first, start), end = std::min(last, start + lanes * units); f < end; ++f) {
        const index_t u = f - start;
        const std::uint32_t bits = random[u % units / 2][u / units] >> (u % 2 * 16) & 0xffffu;
        factor[f - first] = bits < limit ? T(0) : kept;
      }
    }
  }

  /// That of unit f alone.
  MOESKIP_HD float factor(index_t n, int e, index_t f) const {
    const philox_block random = philox(counter(rows.id(n), e, f / units), from.value);
    const std::uint32_t bits = random.word[f % units / 2] >> (f % 2 * 16) & 0xffffu;
    return bits < std::uint32_t(threshold()) ? 0.f : float(scale());
  }

 private:
  static constexpr index_t units = 8;  // of a block
  static constexpr int lanes = 32;     // blocks at a time; g++ 12 unrolls 16 and makes no vectors of them

  MOESKIP_HD int threshold() const {
    const int nearest = int(double(p) * 65536 + 0.5);
    return nearest < 65535 ? nearest : 65535;
  }
  /// The block's number takes 15 bits beside the expert's 9, and what is left of it the bits above the layer's 7.
  MOESKIP_HD philox_block counter(std::uint64_t token, int e, index_t number) const {
    const auto b = std::uint64_t(number);
    return draws{from, stream::expert_activation}.counter(step, std::uint64_t(layer) | (b >> 15) << 7, token,
                                                          std::uint64_t(e) | (b & 0x7fff) << 9);
  }
};

}  // namespace moeskip
