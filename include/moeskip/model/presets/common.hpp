// What the presets share: the fields of config.json that every decoder of this family has, read and written.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moeskip/model/pretrained.hpp"

namespace moeskip::presets::common {

/// The part of a head that is rotated, its first elements.
inline void read_rotated_part(huggingface::config_file& f, sizes& s, const json_at& field, float otherwise) {
  const float part = f.number(field, otherwise);
  if (part == 1.f) return;
  if (part > 0 && part < 1) s.rotary_dim = int(float(s.head_size()) * part);
  if (s.rotary_dim < 2) f.differs(field, "a part of head_dim: more than 0, at most 1");
}

/// rope_parameters of transformers 5, or rope_theta and rope_scaling of 4. rotated_part: where no field says it.
inline void read_rotation(huggingface::config_file& f, sizes& s, float rotated_part) {
  const json_at both = f.at("rope_parameters"), scaling = both ? both : f.at("rope_scaling");
  s.rope_theta = f.number(both && both["rope_theta"] ? both["rope_theta"] : f.at("rope_theta"), 10000.f);
  const json_at inner = both ? both["partial_rotary_factor"] : both;
  read_rotated_part(f, s, inner ? inner : f.at("partial_rotary_factor"), rotated_part);
  if (!scaling) return;
  const json_at type = scaling["rope_type"] ? scaling["rope_type"] : scaling["type"];
  const std::string* name = type ? type.value->as<std::string>() : nullptr;
  if (name && *name == "llama3") {
    s.stretch = {.factor = f.number(scaling["factor"]),
                 .low = f.number(scaling["low_freq_factor"]),
                 .high = f.number(scaling["high_freq_factor"])};
    const float original = f.number(scaling["original_max_position_embeddings"]);
    if (original >= 1 && original <= 0x1p24f) s.stretch.original = int(original);
    else f.differs(scaling["original_max_position_embeddings"], "a number of tokens");
  } else if (!name || *name != "default") {
    f.differs(type, "\"default\" or \"llama3\"");
  }
}

/// Sizes, norms, rotation and head; V's own fields are left to the preset.
template <class V>
config<V> read_decoder(huggingface::config_file& f, std::string_view model_type, float rotated_part = 1.f) {
  config<V> c;
  sizes& s = c.sizes;
  f.expect("model_type", model_type);
  s.layers = f.count("num_hidden_layers"), s.dim = f.count("hidden_size"), s.heads = f.count("num_attention_heads");
  s.kv_heads = f.count("num_key_value_heads", s.heads), s.vocab = f.count("vocab_size");
  if (f.at("head_dim")) s.head_dim = f.count("head_dim");
  s.context = f.count("max_position_embeddings");
  s.norm_eps = f.number("rms_norm_eps");
  s.tied = f.flag("tie_word_embeddings", false);
  f.expect("hidden_act", "silu", "silu");
  read_rotation(f, s, rotated_part);
  return c;
}

/// The router's `renormalise`, wherever in a nest of wrappers it stands. False where there is none.
template <class R> bool set_renormalise(R& r, bool value) {
  if constexpr (requires { r.renormalise; }) return r.renormalise = value, true;
  else if constexpr (requires { r.base; }) return set_renormalise(r.base, value);
  else return false;
}
/// coefficient: of a balance loss that is K for balanced experts, as transformers has it; ours is 1 then.
template <class R> void set_balance(R& r, float coefficient) {
  if constexpr (requires { r.balance_loss; }) r.balance_loss = coefficient * float(R::experts_per_token);
  else if constexpr (requires { r.base; }) set_balance(r.base, coefficient);
}
template <class R> float balance_of(const R& r) {
  return float(router::balance_weight(r)) / float(R::experts_per_token);
}

/// Softmax routing: K of E experts, gates divided by their sum or not.
template <class V> void read_router(huggingface::config_file& f, config<V>& c, bool renormalise) {
  constexpr int K = V::router::experts_per_token;
  c.sizes.experts = f.count({"num_experts", "num_local_experts"});
  f.expect({"num_experts_per_tok"}, K);
  if (!set_renormalise(c.router, renormalise))
    f.problem("V::router: expected one with `renormalise`, such as router::top_k<K>");
  set_balance(c.router, f.number("router_aux_loss_coef", 0.001f));
}

/// Lines of a config.json.
class lines {
 public:
  lines& add(std::string_view name, std::string_view value) { return raw(name, text("\"", value, "\"")); }
  lines& add(std::string_view name, const char* value) { return add(name, std::string_view(value)); }
  template <class N> lines& add(std::string_view name, N value) { return raw(name, text(value)); }
  lines& raw(std::string_view name, std::string_view json) {
    out_ += text("  \"", name, "\": ", json, ",\n");
    return *this;
  }
  const std::string& done() const { return out_; }

 private:
  std::string out_;
};

inline float rotated_part(const sizes& s) { return s.rotary_dim ? float(s.rotary_dim) / float(s.head_size()) : 1.f; }

inline std::string rotation_of(const sizes& s) {
  std::string out = text("{\"rope_theta\": ", s.rope_theta, ", ");
  if (rotated_part(s) != 1.f) out += text("\"partial_rotary_factor\": ", rotated_part(s), ", ");
  out += "\"rope_type\": ";
  if (s.stretch.factor == 1.f) return out + "\"default\"}";
  return text(out, "\"llama3\", \"factor\": ", s.stretch.factor, ", \"low_freq_factor\": ", s.stretch.low,
              ", \"high_freq_factor\": ", s.stretch.high,
              ", \"original_max_position_embeddings\": ", s.stretch.original, "}");
}

inline lines write_decoder(const sizes& s, std::string_view model_type, std::string_view architecture) {
  lines out;
  out.raw("architectures", text("[\"", architecture, "\"]")).add("model_type", model_type);
  out.add("num_hidden_layers", s.layers).add("hidden_size", s.dim).add("num_attention_heads", s.heads);
  out.add("num_key_value_heads", s.kv_groups()).add("head_dim", s.head_size()).add("vocab_size", s.vocab);
  out.add("max_position_embeddings", s.context).add("rms_norm_eps", s.norm_eps).add("tie_word_embeddings", s.tied);
  out.add("hidden_act", "silu").add("rope_theta", s.rope_theta).raw("rope_parameters", rotation_of(s));
  if (s.stretch.factor != 1.f) out.raw("rope_scaling", rotation_of(s));
  if (rotated_part(s) != 1.f) out.add("partial_rotary_factor", rotated_part(s));
  return out;
}

/// Under the model's own name, or fused with other experts.
inline std::vector<tensor_source> same_name_or_fused(const tensor_info& t, const sizes& s) {
  std::vector<tensor_source> all{{t.name, {t.shape.begin(), t.shape.end()}}};
  if (auto fused = fused_expert(t, s)) all.push_back(std::move(*fused));
  return all;
}

}  // namespace moeskip::presets::common
