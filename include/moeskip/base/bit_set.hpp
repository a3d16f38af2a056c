// Small sets of layers and experts as flat values: usable in constant expressions and on the device.
#pragma once

#include <bit>
#include <cstdint>

#include "moeskip/base/check.hpp"
#include "moeskip/base/config.hpp"

namespace moeskip {

/// A set of integers in [0, N).
template <int N> struct bit_set {
  static constexpr int capacity = N;
  std::uint64_t words[(N + 63) / 64] = {};

  MOESKIP_HD static constexpr bit_set first(int count) {  // {0, …, count-1}
    bit_set s;
    for (int i = 0; i < count; ++i) s.insert(i);
    return s;
  }
  MOESKIP_HD constexpr bool contains(int i) const { return inside(i) && (words[i / 64] >> (i % 64) & 1u); }
  /// Numbers outside [0, N) are never members: inserting one changes nothing.
  MOESKIP_HD constexpr bit_set& insert(int i) {
    if (inside(i)) words[i / 64] |= std::uint64_t{1} << (i % 64);
    return *this;
  }
  MOESKIP_HD constexpr bit_set& erase(int i) {
    if (inside(i)) words[i / 64] &= ~(std::uint64_t{1} << (i % 64));
    return *this;
  }
  MOESKIP_HD constexpr int size() const {
    int n = 0;
    for (const std::uint64_t word : words) n += std::popcount(word);
    return n;
  }
  MOESKIP_HD constexpr bit_set& operator&=(const bit_set& other) {
    for (int i = 0; i < (N + 63) / 64; ++i) words[i] &= other.words[i];
    return *this;
  }
  MOESKIP_HD constexpr bit_set& operator|=(const bit_set& other) {
    for (int i = 0; i < (N + 63) / 64; ++i) words[i] |= other.words[i];
    return *this;
  }
  friend constexpr bool operator==(const bit_set&, const bit_set&) = default;

 private:
  MOESKIP_HD static constexpr bool inside(int i) { return i >= 0 && i < N; }
};

using layer_set = bit_set<128>;   // exit layers: e is a member when there is an exit after e layers
using expert_set = bit_set<512>;  // experts that survive dropout

/// Exits after the given numbers of layers: exits_after(4, 8). Throws config_error (or does not compile, where it is a
/// constant) for one beyond 127.
template <class... Layers> constexpr layer_set exits_after(Layers... layers) {
  layer_set s;
  for (const int e : {int(layers)...}) {
    MOESKIP_CHECK(config_error, e > 0 && e < layer_set::capacity, "exits must lie from 1 to ", layer_set::capacity - 1,
                  ", got ", e);
    s.insert(e);
  }
  return s;
}

/// Exits after every n layers below the top: exits_every(2, 8) is {2, 4, 6}. Throws config_error (or does not compile,
/// where it is a constant) for n below 1.
constexpr layer_set exits_every(int n, int layers) {
  MOESKIP_CHECK(config_error, n >= 1, "exits must be at least 1 layer apart, got ", n);
  layer_set s;
  for (int e = n; e < layers && e < layer_set::capacity; e += n) s.insert(e);
  return s;
}

}  // namespace moeskip
