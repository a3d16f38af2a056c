// Mixtral: every layer MoE, two experts a token, gates divided by their sum.                     arXiv:2401.04088
#pragma once

#include "moeskip/model/presets/common.hpp"

namespace moeskip::presets {

template <int K> struct mixtral_of : variant {
  using router = moeskip::router::top_k<K>;

  struct huggingface {
    static constexpr std::string_view name = "mixtral", architecture = "MixtralForCausalLM";

    template <class V> static config<V> configure(moeskip::huggingface::config_file& f) {
      config<V> c = common::read_decoder<V>(f, "mixtral");
      c.sizes.ffn = f.count("intermediate_size");
      common::read_router(f, c, true);
      if (const json_at window = f.at("sliding_window"); window && f.count("sliding_window") < c.sizes.context)
        f.differs(window, "null, or no less than max_position_embeddings");
      return c;
    }
    /// block_sparse_moe.experts.E.{w1,w3,w2} are gate, up and down.
    static std::vector<tensor_source> sources(const tensor_info& t, const sizes& s) {
      std::vector<tensor_source> all = common::same_name_or_fused(t, s);
      std::string own = t.name;
      if (const auto e = expert_name::of(t.name)) {
        const char* matrix = e->matrix == "gate_proj" ? "w1" : e->matrix == "up_proj" ? "w3" : "w2";
        own = text(e->layer, "block_sparse_moe.experts.", e->expert, ".", matrix, ".weight");
      } else if (const std::size_t gate = t.name.find("mlp.gate."); gate != t.name.npos) {
        own.replace(gate, 3, "block_sparse_moe");
      }
      if (own != t.name) all.insert(all.begin(), {own, {t.shape.begin(), t.shape.end()}});
      return all;
    }
    template <class V> static std::string describe(const config<V>& c) {
      common::lines out = common::write_decoder(c.sizes, "mixtral", architecture);
      out.add("intermediate_size", c.sizes.ffn).add("num_local_experts", c.sizes.experts);
      out.add("num_experts_per_tok", K).add("router_aux_loss_coef", common::balance_of(c.router));
      return out.raw("sliding_window", "null").done();
    }
  };
};
using mixtral = mixtral_of<2>;

}  // namespace moeskip::presets
