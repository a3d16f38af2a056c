// Llama 2, 3, 3.1, 3.2: dense, grouped queries, SwiGLU.        arXiv:2307.09288, arXiv:2407.21783
// layerskip_llama is the same, trained further by LayerSkip's recipe: its public checkpoints are plain Llama, and leave
// after any layer through the full model's head.                arXiv:2404.16710
#pragma once

#include "moeskip/model/presets/common.hpp"
#include "moeskip/parts/layer_dropout/schedules.hpp"

namespace moeskip::presets {

struct llama : variant {
  struct huggingface {
    static constexpr std::string_view name = "llama", architecture = "LlamaForCausalLM";

    template <class V> static config<V> configure(moeskip::huggingface::config_file& f) {
      config<V> c = common::read_decoder<V>(f, "llama");
      c.sizes.moe_every = 0, c.sizes.dense_ffn = f.count("intermediate_size");
      f.expect("attention_bias", false, false), f.expect("mlp_bias", false, false);
      return c;
    }
    static std::vector<tensor_source> sources(const tensor_info& t, const sizes& s) {
      return common::same_name_or_fused(t, s);
    }
    template <class V> static std::string describe(const config<V>& c) {
      common::lines out = common::write_decoder(c.sizes, "llama", architecture);
      out.add("intermediate_size", c.sizes.dense_width()).add("attention_bias", false).add("mlp_bias", false);
      return out.done();
    }
  };
};

struct layerskip_llama : llama {
  using layer_dropout = moeskip::layer_dropout::exponential;
  using curriculum = moeskip::curriculum::rotational;
};

}  // namespace moeskip::presets
