// All weights of a model as views into one block of memory, or to where they stand outside of it. The same walk over
// the parts measures the block, binds the views, draws the first values, and names tensors for checkpoints; weights,
// gradients and optimizer state of one model share their offsets.
#pragma once

#include <memory>
#include <span>
#include <type_traits>
#include <vector>

#include "moeskip/model/config.hpp"
#include "moeskip/parts/attention.hpp"
#include "moeskip/parts/dense.hpp"
#include "moeskip/parts/layer_gate.hpp"
#include "moeskip/parts/moe.hpp"

namespace moeskip {

/// One named tensor: where it stands in the block, and its shape.
struct tensor_info {
  std::string name;
  std::vector<index_t> shape;
  index_t offset, size;  // elements; an offset of `outside` where it is not in the block
  initial start;
  tensor_kind kind;
  bool joined = false;  // read as one matrix with the one before

  static constexpr index_t outside = -1;
};

/// Weights outside of the block: for each tensor of the listing its first element, or nullptr where the block has it;
/// empty where the block has them all. `owner` keeps them.
template <class W> struct outside_weights {
  std::vector<W*> at;
  std::shared_ptr<const void> owner;
};

template <class V, class W> struct layer_weights {
  attention_weights<V, W> attention;
  moe_weights<V, W> moe;      // bound where the layer is MoE
  dense_weights<V, W> dense;  // bound where it is not, or where V has a dense block after the experts
  gate_weights<W> gate;       // bound where tokens may pass the layer by
};

template <class V, class W> struct model_weights {
  mat<W> embedding;  // (V, D)
  std::vector<layer_weights<V, W>> layers;
  head_weights<W> top;  // norm (D), unembedding (V, D)
  typename V::exit_head::template weights<W> exits;

  head_weights<W> head(int exit_layer) const { return exits.at(exit_layer, top); }
};

/// Walks over all tensors in the order in which they stand in memory; calls tensor(spec, view, extents...).
template <class V, class W, class Tensor>
void visit_tensors(const config<V>& c, model_weights<V, W>& w, Tensor&& tensor) {
  const sizes& s = c.sizes;
  tensor(tensor_spec{"model.embed_tokens.weight", initial::fan_in, false, tensor_kind::embedding}, w.embedding, s.vocab,
         s.dim);
  w.layers.resize(std::size_t(s.layers));
  for (int l = 0; l < s.layers; ++l) {
    const auto prefixed = [&](tensor_spec spec, auto& view, auto... extents) {
      spec.name = text("model.layers.", l, ".", spec.name);
      tensor(std::move(spec), view, extents...);
    };
    layer_weights<V, W>& layer = w.layers[std::size_t(l)];
    layer.attention.tensors(s, prefixed);
    if (!s.is_moe(l)) layer.dense.tensors(s, prefixed);
    else layer.moe.tensors(s, prefixed);
    if (s.is_moe(l) && V::after_moe::has_dense) layer.dense.tensors(s, prefixed, behind_moe);
    if (c.has_gate(l)) layer.gate.tensors(s, prefixed);
  }
  tensor(tensor_spec{"model.norm.weight", initial::ones, false, tensor_kind::norm}, w.top.norm, s.dim);
  if (s.tied) w.top.projection = w.embedding;
  else
    tensor(tensor_spec{"lm_head.weight", initial::fan_in, false, tensor_kind::head}, w.top.projection, s.vocab, s.dim);
  w.exits.tensors(c.exit_head, s, c.exits, tensor);
}

/// Binds the views of w to the block at `base` and lists its tensors. With base = nullptr it only measures. Tensors
/// start at multiples of 64 elements unless they are joined to the one before. outside: those that are not in the
/// block, as in outside_weights.
template <class V, class W>
std::vector<tensor_info> bind_weights(const config<V>& c, model_weights<V, W>& w, W* base,
                                      std::type_identity_t<std::span<W* const>> outside = {}) {
  std::vector<tensor_info> listing;
  index_t end = 0;
  const auto tensor = [&](tensor_spec spec, auto& view, auto... extents) {
    MOESKIP_CHECK(config_error, outside.empty() || listing.size() < outside.size(),
                  "weights outside of the block: got ", outside.size(), ", and the model has more tensors");
    W* at = outside.empty() ? nullptr : outside[listing.size()];
    const bool in_block = !at;
    const bool behind = spec.joined && (listing.empty() || listing.back().offset != tensor_info::outside);
    if (in_block && !behind) end = (end + 63) / 64 * 64;
    if (in_block && base) at = base + end;
    view = std::remove_reference_t<decltype(view)>(at, extents...);
    listing.push_back({std::move(spec.name),
                       {index_t(extents)...},
                       in_block ? end : tensor_info::outside,
                       view.size(),
                       spec.start,
                       spec.kind,
                       spec.joined && !spec.apart});
    if (in_block) end += view.size();
  };
  visit_tensors(c, w, tensor);
  return listing;
}

inline index_t block_size(const std::vector<tensor_info>& listing) {
  index_t end = 0;
  for (const tensor_info& t : listing)
    if (t.offset != tensor_info::outside) end = t.offset + t.size;
  return (end + 63) / 64 * 64;
}

}  // namespace moeskip
