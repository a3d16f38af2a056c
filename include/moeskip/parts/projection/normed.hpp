// Queries and keys normalised by their root mean square before they are rotated.
//   normed_heads   each head for itself, one gain (d) for all heads of a kind           Qwen3, arXiv:2505.09388
//   normed_width   all heads of a token together, gains (H·d) and (G·d)                 OLMoE, arXiv:2409.02060
#pragma once

#include <string_view>
#include <type_traits>

#include "moeskip/ops/qkv_adjustment.hpp"
#include "moeskip/parts/sizes.hpp"

namespace moeskip::projection {

template <bool PerHead> struct normed {
  static constexpr std::string_view name = PerHead ? "normed_heads" : "normed_width";
  static constexpr bool keeps_input = true;
  static constexpr index_t active_weights(const sizes& s) {
    return PerHead ? 2 * s.head_size() : index_t(s.heads + s.kv_groups()) * s.head_size();
  }

  template <class W> struct weights {
    vec<W> q, k;  // gains: (d) (d), or (H·d) (G·d)

    template <class Tensor> void tensors(const sizes& s, Tensor&& tensor) {
      tensor({"self_attn.q_norm.weight", initial::ones, false, tensor_kind::norm}, q, queries(s).width);
      tensor({"self_attn.k_norm.weight", initial::ones, false, tensor_kind::norm}, k, keys(s, 0).width);
    }
    qkv_adjustment<std::remove_const_t<W>> adjustment(const sizes& s) const {
      return {.q_gain = q, .k_gain = k, .eps = s.norm_eps};
    }
    /// qkv (N, P): queries, keys and values, or the last two alone.
    template <class B> void forward(B& b, mat<scalar_t<B>> qkv, const sizes& s) const {
      adjust(b, qkv, adjustment(s), s.attention());
    }
    /// dqkv (N, P) on entry the gradient of the normed ones, on return of `before` (N, P); dw += ….
    template <class B> void backward(B& b, mat<scalar_t<B>> dqkv, const weights<scalar_t<B>>& dw,
                                     mat<const scalar_t<B>> before, const sizes& s) const {
      norm_groups_backward(b, dqkv, dw.q, before, q, queries(s), s.norm_eps);
      norm_groups_backward(b, dqkv, dw.k, before, k, keys(s, queries(s).end()), s.norm_eps);
    }

   private:
    static column_groups queries(const sizes& s) { return groups(0, s.heads, s.head_size()); }
    static column_groups keys(const sizes& s, index_t first) { return groups(first, s.kv_groups(), s.head_size()); }
    static column_groups groups(index_t first, index_t heads, index_t d) {
      return PerHead ? column_groups{first, heads, d} : column_groups{first, 1, heads * d};
    }
  };
};

using normed_heads = normed<true>;
using normed_width = normed<false>;

}  // namespace moeskip::projection
