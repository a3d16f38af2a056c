// OpenMoE: blocks of four matrices; MoE every 4th (base, 34B) or 6th (8B) layer, with a dense block behind the experts;
// two experts a token whose gates are raw probabilities; attention without a scale.              arXiv:2402.01739
// Dropless: the published code drops assignments over a capacity that depends on how many tokens are in the call, at
// inference too, which would make speculation lossy. openmoe_dropping does it as well, and cannot speculate.
// Its files are pickles: tools/convert_pickled.py makes safetensors.
#pragma once

#include "moeskip/model/presets/common.hpp"
#include "moeskip/parts/mlp/gated_swiglu.hpp"
#include "moeskip/parts/router/dropping.hpp"

namespace moeskip::presets {

struct openmoe : variant {
  using router = moeskip::router::top_k<2>;
  using mlp = moeskip::mlp::gated_swiglu;
  using after_moe = moeskip::after_moe::dense;

  /// The published sizes: base, 8B and 34B, which have 0.8, 11.9 and 46.3 billion weights.
  static constexpr sizes published(int layers, int dim, int heads, int head_dim, int ffn, int experts, int moe_every) {
    sizes s{.layers = layers, .dim = dim, .heads = heads, .head_dim = head_dim, .ffn = ffn, .experts = experts};
    s.vocab = 256384, s.context = 2048, s.moe_every = moe_every, s.norm_eps = 1e-6f, s.attention_scale = 1.f;
    return s;
  }
  static constexpr sizes base_sizes() { return published(12, 768, 12, 64, 2048, 16, 4); }
  static constexpr sizes sizes_8b() { return published(24, 2048, 24, 128, 8192, 32, 6); }
  static constexpr sizes sizes_34b() { return published(32, 3072, 24, 128, 12288, 32, 4); }

  struct huggingface {
    static constexpr std::string_view name = "openmoe", architecture = "OpenMoeForCausalLM";

    /// Names of the newer config.json, and of ColossalAI's older one.
    template <class V> static config<V> configure(moeskip::huggingface::config_file& f) {
      config<V> c;
      sizes& s = c.sizes;
      s.layers = f.count("num_hidden_layers"), s.dim = f.count("hidden_size"), s.heads = f.count("num_attention_heads");
      f.expect({"num_key_value_heads"}, s.heads, s.heads);
      s.head_dim = f.count("head_dim"), s.vocab = f.count("vocab_size"), s.context = f.count("max_position_embeddings");
      s.ffn = s.dense_ffn = f.count("intermediate_size"), s.experts = f.count("num_experts");
      s.moe_every = f.count({"moe_layer_interval", "expert_interval"});
      s.norm_eps = f.number(f.at({"rms_norm_eps", "layer_norm_epsilon"}));
      s.rope_theta = f.number("rope_theta", 10000.f), s.attention_scale = 1.f;
      f.expect({"router_topk", "topk"}, V::router::experts_per_token);
      f.expect("hidden_act", "swiglu"), f.expect("mlp_gated", true, true);
      f.expect("tie_word_embeddings", false, false), f.expect("attention_bias", false, false);
      f.expect_none("rope_scaling");
      if (!common::set_renormalise(c.router, false))
        f.problem("V::router: expected one with `renormalise`, such as router::top_k<2>");
      common::set_balance(c.router, f.number("router_aux_loss_factor", 0.01f));
      if constexpr (requires { c.router.inference_factor; }) {
        c.router.train_factor = f.number(f.at({"router_capacity_factor_train", "capacity_factor_train"}), 1.25f);
        c.router.inference_factor = f.number(f.at({"router_capacity_factor_eval", "capacity_factor_eval"}), 2.f);
        c.router.least = f.count({"router_min_capacity", "min_capacity"}, 4);
      }
      return c;
    }

    /// Experts stand alone (openmoe-8b-native-pt), or all in one tensor, input-major: wi_gate (E, D, 2F), wi_up (E, D,
    /// F), wo (E, F, D).
    static std::vector<tensor_source> sources(const tensor_info& t, const sizes& s) {
      std::vector<tensor_source> all{{t.name, {t.shape.begin(), t.shape.end()}}};
      const index_t E = s.experts, D = s.dim, F = s.ffn;
      if (const auto e = expert_name::of(t.name)) {
        const std::string in = e->layer + "mlp.experts.";
        const index_t n = e->expert;
        if (e->matrix == "gate_proj") all.push_back({in + "wi_gate", {E, D, 2 * F}, n * D * 2 * F, 2 * F});
        if (e->matrix == "up_proj") all.push_back({in + "wi_up", {E, D, F}, n * D * F, F});
        if (e->matrix == "down_proj") all.push_back({in + "wo", {E, F, D}, n * F * D, D});
      } else if (const std::size_t gate = t.name.find("mlp.gate.weight"); gate != t.name.npos) {
        all.push_back({t.name.substr(0, gate) + "mlp.gate_weight", {E, D}});
      }
      return all;
    }

    template <class V> static std::string describe(const config<V>& c) {
      const sizes& s = c.sizes;
      common::lines out;
      out.raw("architectures", text("[\"", architecture, "\"]")).add("model_type", "llama");
      out.add("num_hidden_layers", s.layers).add("hidden_size", s.dim).add("num_attention_heads", s.heads);
      out.add("num_key_value_heads", s.heads).add("head_dim", s.head_size()).add("vocab_size", s.vocab);
      out.add("max_position_embeddings", s.context).add("intermediate_size", s.ffn).add("num_experts", s.experts);
      out.add("moe_layer_interval", s.moe_every).add("router_topk", V::router::experts_per_token);
      out.add("rms_norm_eps", s.norm_eps).add("rope_theta", s.rope_theta).add("hidden_act", "swiglu");
      out.add("router_aux_loss_factor", common::balance_of(c.router));
      if constexpr (requires { c.router.inference_factor; }) {
        out.add("router_capacity_factor_train", c.router.train_factor);
        out.add("router_capacity_factor_eval", c.router.inference_factor).add("router_min_capacity", c.router.least);
      }
      return out.add("mlp_gated", true).add("tie_word_embeddings", false).done();
    }
  };
};

/// As the published code routes: with a capacity, at inference too.
struct openmoe_dropping : openmoe {
  using router = moeskip::router::dropping<moeskip::router::top_k<2>>;
  using decoder = moeskip::decoder::autoregressive;
};

}  // namespace moeskip::presets
