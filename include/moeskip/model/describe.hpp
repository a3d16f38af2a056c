// describe(model): what a model is, in a few lines.
#pragma once

#include "moeskip/base/parallel.hpp"
#include "moeskip/model/model.hpp"
#include "moeskip/model/weights_read.hpp"
#include "moeskip/ops/list.hpp"

namespace moeskip {

/// Parameters, and what one token touches of them. Embedding rows are looked up, not multiplied: a token reads one.
struct model_footprint {
  index_t parameters = 0;         // all
  index_t active_parameters = 0;  // multiplied for one token at full depth, K experts a MoE layer, one head
  index_t bytes_per_token = 0;    // of weights, read for one token at full depth
};

template <class V, class B> model_footprint footprint(const model<V, B>& m) {
  const sizes& s = m.sizes();
  model_footprint f;
  for (const tensor_info& t : m.tensors()) f.parameters += t.size;
  double active = head_weights_read(s);
  for (int l = 0; l < s.layers; ++l)
    active += layer_weights_read(m.configuration(), l, router::active_experts(m.configuration().router));
  f.active_parameters = index_t(active);
  f.bytes_per_token = (f.active_parameters + s.dim) * index_t(sizeof(weight_t<B>));
  return f;
}

/// "1,234,567"
inline std::string grouped(index_t n) {
  std::string digits = text(n);
  for (index_t i = index_t(digits.size()) - 3; i > 0; i -= 3) digits.insert(std::size_t(i), 1, ',');
  return digits;
}

/// Variant, sizes, exits, footprint, bytes that stand in files, backend, what multiplies many rows on a GPU, the
/// ops that it leaves to plain loops; a warning where the CPU offers more than was compiled for.
template <class V, class B> std::string describe(const model<V, B>& m) {
  const sizes& s = m.sizes();
  const model_footprint f = footprint(m);
  std::string out = text("variant    ", variant_name<V>(), "\n");
  out += text("layers     ", s.layers, ", of which ", s.moe_layers(), " MoE with ", s.experts, " experts of width ",
              s.ffn, ", ", V::router::experts_per_token, " per token\n");
  out += text("width      ", s.dim, ", ", s.heads, " heads of ", s.head_size(), " over ", s.kv_groups(),
              " key/value heads, context ", s.context, ", vocabulary ", s.vocab, "\n");
  out += "exits      ";
  for (int e = 1; e < s.layers; ++e)
    if (m.configuration().exits.contains(e)) out += text(e, ", ");
  out += text(s.layers, "\n");
  if (m.configuration().exits.contains(1))
    out += "note       LayerSkip's formula gives the exit after layer 1 the weight 0: by default it does not learn\n";
  out += text("weights    ", grouped(f.parameters), " in all, ", grouped(f.active_parameters),
              " active for one token, ", grouped(f.bytes_per_token), " bytes read per token\n");
  if (m.bytes_in_files() > 0)
    out += text("in files   ", grouped(index_t(m.bytes_in_files())), " bytes of weights, read where they stand\n");
  out += text("backend    ", B::name(), ", ", thread_count(), " threads\n");
  if constexpr (requires { B::multiplies_by(); })
    out += text("many rows  products by ", B::multiplies_by(), ", attention by ", B::attends_by(s.head_size()), "\n");
  if (const std::string slow = fallbacks<B>(); !slow.empty()) out += text("plain      ops without SIMD: ", slow, "\n");
  if constexpr (requires { typename B::isa; }) {
    if (isa::offered().rank > B::isa::rank)
      out += text("warning    compiled for ", B::isa::name, ", this CPU offers ", isa::offered().name,
                  ": compile with -march=native to use it\n");
  }
  return out;
}

}  // namespace moeskip
