// The first values of weights, before any training.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "moeskip/base/parallel.hpp"
#include "moeskip/base/rng.hpp"
#include "moeskip/model/weights.hpp"

namespace moeskip {

/// Matrices of n inputs: mean 0, standard deviation 1/√n, and for what writes to the residual stream of L layers
/// 1/√(2 L n); norms 1, biases 0. block: all weights, as `tensors` lists them. The same seed gives the same weights on
/// any machine.
template <class W>
void draw_first_weights(vec<W> block, const std::vector<tensor_info>& tensors, int layers, seed from) {
  const draws draw{from, stream::weights};
  const double depth = std::sqrt(2.0 * layers);
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const tensor_info& t = tensors[i];
    W* w = block.data() + t.offset;
    // Uniform on ±√3·std has that standard deviation; one block of the generator gives four numbers.
    double bound = std::sqrt(3.0 / double(t.shape.back()));
    if (t.start == initial::residual) bound /= depth;
    if (t.start == initial::ones || t.start == initial::zeros) {
      std::fill_n(w, t.size, W(t.start == initial::ones ? 1.f : 0.f));
      continue;
    }
    parallel_for((t.size + 3) / 4,
                 [&](index_t first, index_t last) {
                   for (index_t q = first; q < last; ++q) {
                     const philox_block random = draw.block(i, 0, std::uint64_t(q));
                     for (index_t j = 0; j < 4 && 4 * q + j < t.size; ++j)
                       w[4 * q + j] = W(float(bound * (double(random.word[j]) * 0x1p-31 - 1)));
                   }
                 },
                 4096);
  }
}

}  // namespace moeskip
