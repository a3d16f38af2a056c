// The shared head behind a norm of the exit's own and a low-rank correction of the normalised stream:
//   h = norm_e(x),   logits = U (h + up (down h))            x, h (D)   down (r, D)   up (D, r)   U (V, D)
// U is the full model's. `up` starts at zero, so that an untrained exit is that of `shared`. It costs 2 r D weights an
// exit instead of V D.
#pragma once

#include <string_view>
#include <vector>

#include "moeskip/concepts/exit_head.hpp"
#include "moeskip/parts/sizes.hpp"

namespace moeskip::exit_head {

struct low_rank {
  static constexpr std::string_view name = "low_rank";
  int rank = 8;

  template <class W> struct weights {
    std::vector<head_weights<W>> heads;  // by exit layer, without projection; empty where there is no exit

    template <class Tensor> void tensors(const low_rank& h, const sizes& s, const layer_set& exits, Tensor&& tensor) {
      heads.resize(std::size_t(s.layers));
      for (int e = 1; e < s.layers; ++e) {
        if (!exits.contains(e)) continue;
        head_weights<W>& head = heads[std::size_t(e)];
        tensor({text("model.exits.", e, ".norm.weight"), initial::ones, false, tensor_kind::norm}, head.norm, s.dim);
        tensor({text("model.exits.", e, ".down.weight")}, head.down, h.rank, s.dim);
        tensor({text("model.exits.", e, ".up.weight"), initial::zeros}, head.up, s.dim, h.rank);
      }
    }
    bool has(int exit_layer) const {
      return exit_layer < int(heads.size()) && heads[std::size_t(exit_layer)].norm.data();
    }
    head_weights<W> at(int exit_layer, const head_weights<W>& top) const {
      if (exit_layer >= int(heads.size())) return top;
      head_weights<W> head = heads[std::size_t(exit_layer)];
      head.projection = top.projection;
      return head;
    }
  };

  constexpr std::string_view problem(const sizes& s) const {
    if (rank < 1 || rank > s.dim || rank > s.vocab)
      return "exit_head.rank must be from 1 to the smaller of sizes.dim and sizes.vocab";
    return {};
  }
  template <class Self, class F> static constexpr void fields(Self& self, F&& f) { f("rank", self.rank); }
  friend constexpr bool operator==(const low_rank&, const low_rank&) = default;
};

}  // namespace moeskip::exit_head
