// The numbers of a model, and how its weights are named and shaped.
//   D dim   H heads   G kv_heads   d head_dim   F ffn   E experts   V vocab
#pragma once

#include <cmath>
#include <string>
#include <string_view>

#include "moeskip/base/bit_set.hpp"
#include "moeskip/ops/rope.hpp"

namespace moeskip {

/// Values left at 0 take the default beside them.
struct sizes {
  int layers = 0;
  int dim = 0;       // width of the residual stream
  int heads = 0;     // query heads
  int kv_heads = 0;  // key/value heads; default: heads
  int head_dim = 0;  // default: dim / heads
  int ffn = 0;       // hidden width of one expert
  int experts = 0;   // per MoE layer
  int vocab = 0;
  int context = 1024;  // longest sequence, tokens
  int moe_every = 1;   // layer l is MoE where (l + 1) % moe_every == 0, the others are dense; 0: none is
  int moe_from = 0;    // and where l >= moe_from: the first layers may all be dense
  int dense_ffn = 0;   // hidden width of a dense layer; default: ffn
  int shared_ffn = 0;  // hidden width of the shared expert of a MoE layer, where the variant has one; default: ffn
  bool tied = false;   // unembed with the embedding table
  float norm_eps = 1e-5f;
  float rope_theta = 10000.f;
  float attention_scale = 0.f;  // multiplies the scores; default: 1/sqrt(head_dim)
  rope_stretch stretch{};       // of slow rotations; default: none
  int rotary_dim = 0;           // elements of a head that are rotated, the first ones; default: all

  constexpr bool is_moe(int layer) const { return moe_every > 0 && layer >= moe_from && (layer + 1) % moe_every == 0; }
  constexpr int moe_layers() const { return moe_every > 0 ? layers / moe_every - moe_from / moe_every : 0; }
  constexpr int dense_width() const { return dense_ffn ? dense_ffn : ffn; }
  constexpr int shared_width() const { return shared_ffn ? shared_ffn : ffn; }
  attention_shape attention() const {
    const int d = head_size();
    return {heads,   kv_groups(), d, rope_theta, attention_scale != 0 ? attention_scale : 1.f / std::sqrt(float(d)),
            stretch, rotary_dim};
  }
  constexpr int head_size() const { return head_dim ? head_dim : heads ? dim / heads : 0; }
  constexpr int kv_groups() const { return kv_heads ? kv_heads : heads; }

  template <class Self, class F> static constexpr void fields(Self& s, F&& f) {
    f("layers", s.layers), f("dim", s.dim), f("heads", s.heads), f("kv_heads", s.kv_heads);
    f("head_dim", s.head_dim), f("ffn", s.ffn), f("experts", s.experts), f("vocab", s.vocab);
    f("context", s.context), f("moe_every", s.moe_every), f("dense_ffn", s.dense_ffn), f("shared_ffn", s.shared_ffn);
    f("tied", s.tied);
    f("norm_eps", s.norm_eps), f("rope_theta", s.rope_theta), f("attention_scale", s.attention_scale);
    f("rope_factor", s.stretch.factor), f("rope_low", s.stretch.low);
    f("rope_high", s.stretch.high), f("rope_original", s.stretch.original);
    f("moe_from", s.moe_from), f("rotary_dim", s.rotary_dim);
  }
  friend constexpr bool operator==(const sizes&, const sizes&) = default;
};

/// Exits after every n-th MoE layer below the top: with MoE every 2nd of 12 layers, exits_after_moe_groups(sizes, 2) is
/// {4, 8}. Empty for n < 1.
constexpr layer_set exits_after_moe_groups(const sizes& s, int n) {
  layer_set exits;
  for (int l = 0, seen = 0; n > 0 && l + 1 < s.layers; ++l)
    if (s.is_moe(l) && ++seen % n == 0) exits.insert(l + 1);
  return exits;
}

/// How a weight starts: drawn with standard deviation 1/√fan_in, the same divided by √(2·layers) where it writes to the
/// residual stream (GPT-2's rule), ones or zeros.
enum class initial { fan_in, residual, ones, zeros };

/// What a weight is to an optimizer: weight decay is for matrices, embeddings and heads; Muon is for matrices alone. A
/// selection bias is no business of optimizers: the trainer moves it against its expert's load.
enum class tensor_kind { matrix, embedding, head, norm, bias, selection_bias };
constexpr bool decays(tensor_kind kind) {
  return kind == tensor_kind::matrix || kind == tensor_kind::embedding || kind == tensor_kind::head;
}

/// Each part lists its weights once, in `tensors(weights, sizes, tensor)`: the listing names them, shapes them, binds
/// views to memory, initialises, saves and loads. `joined` weights stand directly behind the one before, so that
/// several may be read as one matrix; with `apart` that is for the block's sake alone, and outside of it they may stand
/// elsewhere.
struct tensor_spec {
  std::string name;
  initial start = initial::fan_in;
  bool joined = false;
  tensor_kind kind = tensor_kind::matrix;
  bool apart = false;
};

}  // namespace moeskip
