// Qwen's MoE models: MoE every n-th layer, the others dense.
//   qwen2_moe   biases of queries, keys and values; a shared expert of its own width behind a sigmoid, four experts a
//               token (Qwen1.5-MoE-A2.7B; qwen2_moe_of<8>: Qwen2-57B-A14B)                         arXiv:2407.10671
//   qwen3_moe   heads of queries and keys normalised; eight experts a token (Qwen3-30B-A3B)        arXiv:2505.09388
#pragma once

#include "moeskip/model/presets/common.hpp"
#include "moeskip/parts/projection/biased.hpp"
#include "moeskip/parts/projection/normed.hpp"
#include "moeskip/parts/shared_expert/swiglu.hpp"

namespace moeskip::presets {

namespace common {

template <class V> config<V> read_qwen_moe(huggingface::config_file& f, std::string_view model_type) {
  config<V> c = read_decoder<V>(f, model_type);
  c.sizes.moe_every = f.count("decoder_sparse_step", 1);
  c.sizes.dense_ffn = f.count("intermediate_size"), c.sizes.ffn = f.count("moe_intermediate_size");
  read_router(f, c, f.flag("norm_topk_prob", false));
  f.expect_none("mlp_only_layers"), f.expect("use_sliding_window", false, false);
  return c;
}

template <class V>
lines write_qwen_moe(const config<V>& c, std::string_view model_type, std::string_view architecture) {
  lines out = write_decoder(c.sizes, model_type, architecture);
  out.add("intermediate_size", c.sizes.dense_width()).add("moe_intermediate_size", c.sizes.ffn);
  out.add("num_experts", c.sizes.experts).add("num_experts_per_tok", V::router::experts_per_token);
  out.add("norm_topk_prob", c.router.renormalise).add("decoder_sparse_step", c.sizes.moe_every);
  out.raw("mlp_only_layers", "[]").add("use_sliding_window", false);
  return out.add("router_aux_loss_coef", balance_of(c.router));
}

}  // namespace common

template <int K> struct qwen2_moe_of : variant {
  using router = moeskip::router::top_k<K>;
  using projection = moeskip::projection::biased;
  using shared_expert = moeskip::shared_expert::gated;

  struct huggingface {
    static constexpr std::string_view name = "qwen2_moe", architecture = "Qwen2MoeForCausalLM";

    template <class V> static config<V> configure(moeskip::huggingface::config_file& f) {
      config<V> c = common::read_qwen_moe<V>(f, "qwen2_moe");
      c.sizes.shared_ffn = f.count("shared_expert_intermediate_size");
      f.expect("qkv_bias", true, true);
      return c;
    }
    static std::vector<tensor_source> sources(const tensor_info& t, const sizes& s) {
      return common::same_name_or_fused(t, s);
    }
    template <class V> static std::string describe(const config<V>& c) {
      common::lines out = common::write_qwen_moe(c, "qwen2_moe", architecture);
      return out.add("shared_expert_intermediate_size", c.sizes.shared_width()).add("qkv_bias", true).done();
    }
  };
};
using qwen2_moe = qwen2_moe_of<4>;

template <int K> struct qwen3_moe_of : variant {
  using router = moeskip::router::top_k<K>;
  using projection = moeskip::projection::normed_heads;

  struct huggingface {
    static constexpr std::string_view name = "qwen3_moe", architecture = "Qwen3MoeForCausalLM";

    template <class V> static config<V> configure(moeskip::huggingface::config_file& f) {
      config<V> c = common::read_qwen_moe<V>(f, "qwen3_moe");
      f.expect("attention_bias", false, false);
      return c;
    }
    static std::vector<tensor_source> sources(const tensor_info& t, const sizes& s) {
      return common::same_name_or_fused(t, s);
    }
    template <class V> static std::string describe(const config<V>& c) {
      return common::write_qwen_moe(c, "qwen3_moe", architecture).add("attention_bias", false).done();
    }
  };
};
using qwen3_moe = qwen3_moe_of<8>;

}  // namespace moeskip::presets
