// OLMoE: every layer MoE, eight experts a token whose gates are not divided by their sum; queries and keys are
// normalised over their full width.                                                               arXiv:2409.02060
#pragma once

#include "moeskip/model/presets/common.hpp"
#include "moeskip/parts/projection/normed.hpp"

namespace moeskip::presets {

template <int K> struct olmoe_of : variant {
  using router = moeskip::router::top_k<K>;
  using projection = moeskip::projection::normed_width;

  struct huggingface {
    static constexpr std::string_view name = "olmoe", architecture = "OlmoeForCausalLM";

    template <class V> static config<V> configure(moeskip::huggingface::config_file& f) {
      config<V> c = common::read_decoder<V>(f, "olmoe");
      c.sizes.ffn = f.count("intermediate_size");
      common::read_router(f, c, f.flag("norm_topk_prob", false));
      f.expect("attention_bias", false, false), f.expect_none("clip_qkv");
      return c;
    }
    static std::vector<tensor_source> sources(const tensor_info& t, const sizes& s) {
      return common::same_name_or_fused(t, s);
    }
    template <class V> static std::string describe(const config<V>& c) {
      common::lines out = common::write_decoder(c.sizes, "olmoe", architecture);
      out.add("intermediate_size", c.sizes.ffn).add("num_experts", c.sizes.experts).add("num_experts_per_tok", K);
      out.add("norm_topk_prob", c.router.renormalise).add("attention_bias", false).raw("clip_qkv", "null");
      return out.add("router_aux_loss_coef", common::balance_of(c.router)).done();
    }
  };
};
using olmoe = olmoe_of<8>;

}  // namespace moeskip::presets
