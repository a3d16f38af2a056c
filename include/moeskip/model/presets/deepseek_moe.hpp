// The experts of DeepSeek-V3 under ordinary attention: the first layers dense, all others MoE; sigmoid scores with a
// selection bias, experts in groups, gates divided by their sum and scaled, shared experts beside them.
//   dots1             heads of queries and keys normalised; six experts a token (dots.llm1)        arXiv:2506.05767
//   glm4_moe          biases, half of each head rotated; eight experts a token (GLM-4.5-Air)       arXiv:2508.06471
//   glm4_moe_normed   the same with heads of queries and keys normalised (GLM-4.5, GLM-4.6)
// Router: DeepSeek-V3, arXiv:2412.19437, section 2.1.2. Its multi-head latent attention is not supported (ADR 12).
#pragma once

#include "moeskip/model/presets/common.hpp"
#include "moeskip/parts/projection/biased.hpp"
#include "moeskip/parts/projection/biased_normed.hpp"
#include "moeskip/parts/projection/normed.hpp"
#include "moeskip/parts/router/biased.hpp"
#include "moeskip/parts/router/sigmoid_top_k.hpp"
#include "moeskip/parts/shared_expert/swiglu.hpp"

namespace moeskip::presets {

namespace common {

/// The router with groups of experts, wherever in a nest of wrappers it stands, to f. False where there is none.
template <class R, class F> bool with_groups(R& r, F&& f) {
  if constexpr (requires { r.best_groups; }) return f(r), true;
  else if constexpr (requires { r.base; }) return with_groups(r.base, f);
  else return false;
}

/// dense_layers, renormalises: what first_k_dense_replace and norm_topk_prob are where the file does not say it.
template <class V>
void read_deepseek_moe(huggingface::config_file& f, config<V>& c, int dense_layers, bool renormalises) {
  sizes& s = c.sizes;
  s.moe_from = f.count("first_k_dense_replace", dense_layers, 0);
  s.dense_ffn = f.count("intermediate_size"), s.ffn = f.count("moe_intermediate_size");
  s.experts = f.count({"n_routed_experts", "num_local_experts"});
  const int shared = f.count("n_shared_experts");  // fused into one block
  if (shared <= (1 << 24) / s.ffn) s.shared_ffn = shared * s.ffn;
  else f.differs(f.at("n_shared_experts"), "fewer shared experts");
  f.expect({"num_experts_per_tok"}, V::router::experts_per_token);
  f.expect("scoring_func", "sigmoid", "sigmoid"), f.expect("topk_method", "noaux_tc", "noaux_tc");
  f.expect_none("kv_lora_rank");  // multi-head latent attention
  const bool found = with_groups(c.router, [&](auto& r) {
    r.groups = f.count("n_group", 1), r.best_groups = f.count("topk_group", 1);
    r.renormalise = f.flag("norm_topk_prob", renormalises), r.scale = f.number("routed_scaling_factor", 1.f);
    r.balance_loss = 0;  // the selection bias keeps the balance
  });
  if (!found) f.problem("V::router: expected one with groups, such as router::biased<router::sigmoid_top_k<K>>");
}

template <class V> void write_deepseek_moe(lines& out, const config<V>& c) {
  const sizes& s = c.sizes;
  out.add("intermediate_size", s.dense_width()).add("moe_intermediate_size", s.ffn);
  out.add("first_k_dense_replace", s.moe_from).add("n_routed_experts", s.experts);
  out.add("n_shared_experts", s.shared_width() / s.ffn).add("num_experts_per_tok", V::router::experts_per_token);
  with_groups(c.router, [&](const auto& r) {
    out.add("n_group", r.groups).add("topk_group", r.best_groups);
    out.add("norm_topk_prob", r.renormalise).add("routed_scaling_factor", r.scale);
  });
}

/// "mlp.shared_experts." where the model has "mlp.shared_expert.".
inline std::vector<tensor_source> deepseek_sources(const tensor_info& t, const sizes& s) {
  std::vector<tensor_source> all = same_name_or_fused(t, s);
  constexpr std::string_view own = "mlp.shared_expert.";
  if (const std::size_t at = t.name.find(own); at != t.name.npos)
    all.front().name.replace(at, own.size(), "mlp.shared_experts.");
  return all;
}

}  // namespace common

template <int K> struct dots1_of : variant {
  using router = moeskip::router::biased<moeskip::router::sigmoid_top_k<K>>;
  using projection = moeskip::projection::normed_heads;
  using shared_expert = moeskip::shared_expert::always;

  struct huggingface {
    static constexpr std::string_view name = "dots1", architecture = "Dots1ForCausalLM";

    template <class V> static config<V> configure(moeskip::huggingface::config_file& f) {
      config<V> c = common::read_decoder<V>(f, "dots1");
      common::read_deepseek_moe(f, c, 0, false);
      f.expect("attention_bias", false, false);
      expect_no_windows(f, c.sizes.layers);
      return c;
    }
    /// Which layers see a window of tokens stands in layer_types; older files have it from the layer max_window_layers
    /// on.
    static void expect_no_windows(moeskip::huggingface::config_file& f, int layers) {
      const json_at types = f.at("layer_types"), window = f.at("sliding_window");
      if (types) return f.expect_each("layer_types", "full_attention");
      const bool unsaid = !window.value;  // then it is 4096 tokens, from layer 62 on
      if ((window || unsaid) && f.count("max_window_layers", 62, 0) < layers)
        f.differs(f.at("max_window_layers"), "no less than num_hidden_layers, or sliding_window to be null");
    }
    static std::vector<tensor_source> sources(const tensor_info& t, const sizes& s) {
      return common::deepseek_sources(t, s);
    }
    template <class V> static std::string describe(const config<V>& c) {
      common::lines out = common::write_decoder(c.sizes, "dots1", architecture);
      common::write_deepseek_moe(out, c);
      return out.add("attention_bias", false).raw("sliding_window", "null").done();
    }
  };
};
using dots1 = dots1_of<6>;

template <int K, bool Normed> struct glm4_moe_of : variant {
  using router = moeskip::router::biased<moeskip::router::sigmoid_top_k<K>>;
  using projection = std::conditional_t<Normed, moeskip::projection::biased_normed_heads, moeskip::projection::biased>;
  using shared_expert = moeskip::shared_expert::always;

  struct huggingface {
    static constexpr std::string_view name = Normed ? "glm4_moe_normed" : "glm4_moe";
    static constexpr std::string_view architecture = "Glm4MoeForCausalLM";

    template <class V> static config<V> configure(moeskip::huggingface::config_file& f) {
      config<V> c = common::read_decoder<V>(f, "glm4_moe", 0.5f);
      common::read_deepseek_moe(f, c, 1, true);
      f.expect("attention_bias", true, false), f.expect("use_qk_norm", Normed, false);
      return c;
    }
    static std::vector<tensor_source> sources(const tensor_info& t, const sizes& s) {
      return common::deepseek_sources(t, s);
    }
    /// Layers behind the last one predict further tokens; they have no part in the model.
    static bool leaves_out(std::string_view tensor, const sizes& s) {
      return tensor.starts_with(text("model.layers.", s.layers, "."));
    }
    template <class V> static std::string describe(const config<V>& c) {
      common::lines out = common::write_decoder(c.sizes, "glm4_moe", architecture);
      common::write_deepseek_moe(out, c);
      out.add("attention_bias", true).add("use_qk_norm", Normed);
      return out.add("num_nextn_predict_layers", 0).done();
    }
  };
};
using glm4_moe = glm4_moe_of<8, false>;
using glm4_moe_normed = glm4_moe_of<8, true>;

}  // namespace moeskip::presets
