// Muon: momentum, made orthogonal, for every matrix; AdamW for embeddings, heads, norms and biases.
//   M = μ M + g,   U = g + μ M,   X = NS(U / ‖U‖),   w = (1 − lr λ) w − lr · 0.2 √max(m, n) · X       w, M, X (m, n)
//   NS, 5 times:   A = X Xᵀ,   X = a X + (b A + c A²) X       brings all singular values of X near 1
// Each expert's matrices are matrices of their own. The factor 0.2 √max(m, n) gives updates the size of AdamW's, so
// that one learning rate serves both. State: one scalar a weight of a matrix, two of any other, and scratch for the
// largest matrix.
// Jordan et al. 2024, kellerjordan.github.io/posts/muon; scale: Liu et al. 2025, arXiv:2502.16982
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string_view>
#include <type_traits>
#include <vector>

#include "moeskip/ops/linear.hpp"
#include "moeskip/ops/vector.hpp"
#include "moeskip/train/optimizer/adamw.hpp"

namespace moeskip {

namespace detail {

/// The backend that has weights in B's scalar.
template <class B> struct widened { using type = B; };
template <Storage W, class Isa, Storage P> struct widened<cpu<W, Isa, P>> { using type = cpu<float, Isa, P>; };
template <class B>
  requires requires { typename B::widened; }
struct widened<B> {
  using type = typename B::widened;
};

/// Scratch of newton_schulz for matrices of up to `elements` elements whose shorter side is at most `side`.
template <class T> struct newton_schulz_scratch {
  buffer<T> x, y, a, a2;
  newton_schulz_scratch(index_t elements, index_t side) : x(elements), y(elements), a(side * side), a2(side * side) {}
};

/// x (m, n) becomes nearly orthogonal: its singular values all about 1; zero stays zero.
template <class B>
void newton_schulz(B& b, mat<scalar_t<B>> x, newton_schulz_scratch<scalar_t<B>>& scratch, int iterations) {
  using M = mat<scalar_t<B>>;
  constexpr double first = 3.4445, third = -4.7750, fifth = 2.0315;  // of the quintic in each singular value
  const index_t m = x.rows(), n = x.cols(), side = std::min(m, n);
  const auto flat = [](M v) { return vec<scalar_t<B>>(v.data(), v.size()); };
  const M y(scratch.y.data(), m, n), a(scratch.a.data(), side, side), a2(scratch.a2.data(), side, side);
  const double norm = std::sqrt(sum_of_squares(b, flat(x)));
  combine(b, flat(x), norm > 0 ? 1 / norm : 0, flat(x), 0, flat(x));
  for (int i = 0; i < iterations; ++i) {
    if (m <= n) {
      linear(b, a, x, x);
    } else {  // Xᵀ X, as the gradient of a weight
      fill_with(b, flat(a), 0);
      linear_backward(b, {}, a, x, x, a2);
    }
    linear(b, a2, a, a);  // a is symmetric
    combine(b, flat(a), third, flat(a), fifth, flat(a2));
    if (m <= n) linear_backward(b, y, {}, a, x, x);  // a X, as the gradient of an input
    else linear(b, y, x, a);
    combine(b, flat(x), first, flat(x), 1, flat(y));
  }
}

/// Some of a model's tensors, packed into a block of their own.
struct packed_tensors {
  std::vector<tensor_info> tensors;    // offsets in that block
  std::vector<index_t> model_offsets;  // ascending

  template <class Belongs> packed_tensors(const std::vector<tensor_info>& all, Belongs&& belongs) {
    for (const tensor_info& t : all) {
      if (!belongs(t)) continue;
      const index_t end = block_size(tensors);
      model_offsets.push_back(t.offset), tensors.push_back(t);
      tensors.back().offset = end;
    }
  }
  index_t size() const { return block_size(tensors); }
  /// Where the model's tensor lies.
  index_t offset(const tensor_info& t) const {
    const auto found = std::lower_bound(model_offsets.begin(), model_offsets.end(), t.offset);
    return tensors[std::size_t(found - model_offsets.begin())].offset;
  }
};

}  // namespace detail

struct muon {
  static constexpr std::string_view name = "muon";
  double lr = 1e-3;  // peak, for matrices and for the rest
  double momentum = 0.95;
  int iterations = 5;                                // Newton-Schulz
  double weight_decay = 0.1;                         // not of norms and biases
  double beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8;  // of AdamW

  /// AdamW with these numbers.
  constexpr adamw rest() const { return {lr, beta1, beta2, epsilon, weight_decay}; }

  constexpr std::string_view problem() const {
    if (!(momentum >= 0 && momentum < 1)) return "momentum must be in [0, 1)";
    if (iterations < 1 || iterations > 100) return "iterations must be from 1 to 100";
    return rest().problem();
  }
  template <class Self, class F> static constexpr void fields(Self& self, F&& f) {
    f("lr", self.lr), f("momentum", self.momentum), f("iterations", self.iterations);
    f("weight_decay", self.weight_decay), f("beta1", self.beta1), f("beta2", self.beta2), f("epsilon", self.epsilon);
  }

  static bool orthogonalises(const tensor_info& t) { return t.kind == tensor_kind::matrix && t.shape.size() == 2; }

  template <class B> struct on {
    using T = scalar_t<B>;
    detail::packed_tensors matrices, others;
    buffer<T> momentum, first_moment, second_moment;
    detail::newton_schulz_scratch<T> scratch;
    typename detail::widened<B>::type products;

    explicit on(const std::vector<tensor_info>& all)
        : matrices(all, [](const tensor_info& t) { return orthogonalises(t); }),
          others(all, [](const tensor_info& t) { return !orthogonalises(t); }),
          momentum(matrices.size()),
          first_moment(others.size()),
          second_moment(others.size()),
          scratch(largest(matrices.tensors, false), largest(matrices.tensors, true)) {}

    template <class F> void blocks(F&& f) {
      f("momentum", matrices.tensors, momentum);
      f("first_moment", others.tensors, first_moment), f("second_moment", others.tensors, second_moment);
    }

    /// w: the weights of one tensor, g: their gradients; t counts updates from 1.
    void update(B& b, const muon& o, const tensor_info& tensor, vec<T> w, vec<const T> g, double rate, std::uint64_t t,
                double gradient_scale) {
      if (!orthogonalises(tensor)) {
        const index_t at = others.offset(tensor);
        return adamw_update(b, w, {first_moment.data() + at, w.size()}, {second_moment.data() + at, w.size()}, g,
                            o.rest().at(rate, t, gradient_scale, tensor.kind));
      }
      const index_t m = tensor.shape[0], n = tensor.shape[1];
      const vec<T> past(momentum.data() + matrices.offset(tensor), w.size()), x(scratch.x.data(), w.size());
      if (sum_of_squares(b, g) == 0) {  // an expert that nobody visited: its stale momentum must not move it
        combine(b, past, o.momentum, past, 0, past);
        return combine(b, w, 1 - rate * o.weight_decay, w, 0, w);
      }
      combine(b, past, o.momentum, past, gradient_scale, g);
      combine(b, x, o.momentum, past, gradient_scale, g);
      detail::newton_schulz(products, mat<T>(x.data(), m, n), scratch, o.iterations);
      combine(b, w, 1 - rate * o.weight_decay, w, -rate * 0.2 * std::sqrt(double(std::max(m, n))), x);
    }

   private:
    /// Elements of the largest matrix, or the largest shorter side.
    static index_t largest(const std::vector<tensor_info>& tensors, bool side) {
      index_t most = 0;
      for (const tensor_info& t : tensors) most = std::max(most, side ? std::min(t.shape[0], t.shape[1]) : t.size);
      return most;
    }
  };
  friend constexpr bool operator==(const muon&, const muon&) = default;
};

}  // namespace moeskip
