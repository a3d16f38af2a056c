// Queries, keys and values with a bias each, as Qwen2 has them: qkv += b.                      arXiv:2407.10671
#pragma once

#include <string_view>
#include <type_traits>

#include "moeskip/ops/qkv_adjustment.hpp"
#include "moeskip/parts/sizes.hpp"

namespace moeskip::projection {

struct biased {
  static constexpr std::string_view name = "biased";
  static constexpr bool keeps_input = false;
  static constexpr index_t active_weights(const sizes& s) {
    return index_t(s.heads + 2 * s.kv_groups()) * s.head_size();
  }

  template <class W> struct weights {
    vec<W> q, k, v;  // (H·d) (G·d) (G·d)

    vec<W> all() const { return {q.data(), q.size() + k.size() + v.size()}; }  // they are joined

    template <class Tensor> void tensors(const sizes& s, Tensor&& tensor) {
      const int q_dim = s.heads * s.head_size(), kv_dim = s.kv_groups() * s.head_size();
      tensor({"self_attn.q_proj.bias", initial::zeros, false, tensor_kind::bias}, q, q_dim);
      tensor({"self_attn.k_proj.bias", initial::zeros, true, tensor_kind::bias}, k, kv_dim);
      tensor({"self_attn.v_proj.bias", initial::zeros, true, tensor_kind::bias}, v, kv_dim);
    }
    qkv_adjustment<std::remove_const_t<W>> adjustment(const sizes&) const { return {.bias = all()}; }
    /// qkv (N, P): queries, keys and values, or the last two alone.
    template <class B> void forward(B& b, mat<scalar_t<B>> qkv, const sizes& s) const {
      adjust(b, qkv, adjustment(s), s.attention());
    }
    /// dqkv (N, P) stays as it is; dw += ….
    template <class B> void backward(B& b, mat<scalar_t<B>> dqkv, const weights<scalar_t<B>>& dw,
                                     mat<const scalar_t<B>>, const sizes&) const {
      add_bias_backward(b, dw.all(), dqkv);
    }
  };
};

}  // namespace moeskip::projection
