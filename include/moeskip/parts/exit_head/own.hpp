// A norm and a projection for each exit, as EE-LLM has them.                                       arXiv:2312.04916
#pragma once

#include <string_view>
#include <vector>

#include "moeskip/concepts/exit_head.hpp"
#include "moeskip/parts/sizes.hpp"

namespace moeskip::exit_head {

struct own {
  static constexpr std::string_view name = "own";

  template <class W> struct weights {
    std::vector<head_weights<W>> heads;  // by exit layer; empty where there is no exit

    template <class Tensor> void tensors(const own&, const sizes& s, const layer_set& exits, Tensor&& tensor) {
      heads.resize(std::size_t(s.layers));
      for (int e = 1; e < s.layers; ++e) {
        if (!exits.contains(e)) continue;
        head_weights<W>& head = heads[std::size_t(e)];
        tensor({text("model.exits.", e, ".norm.weight"), initial::ones, false, tensor_kind::norm}, head.norm, s.dim);
        tensor({text("model.exits.", e, ".head.weight"), initial::fan_in, false, tensor_kind::head}, head.projection,
               s.vocab, s.dim);
      }
    }
    bool has(int exit_layer) const {
      return exit_layer < int(heads.size()) && heads[std::size_t(exit_layer)].norm.data();
    }
    head_weights<W> at(int exit_layer, const head_weights<W>& top) const {
      return exit_layer < int(heads.size()) ? heads[std::size_t(exit_layer)] : top;
    }
  };

  template <class Self, class F> static constexpr void fields(Self&, F&&) {}
  friend constexpr bool operator==(const own&, const own&) = default;
};

}  // namespace moeskip::exit_head
