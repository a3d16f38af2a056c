// One head for every depth: the model's final norm and unembedding.      LayerSkip, arXiv:2404.16710, section 4.2
#pragma once

#include <string_view>

#include "moeskip/concepts/exit_head.hpp"
#include "moeskip/parts/sizes.hpp"

namespace moeskip::exit_head {

struct shared {
  static constexpr std::string_view name = "shared";

  template <class W> struct weights {
    template <class Tensor> void tensors(const shared&, const sizes&, const layer_set&, Tensor&&) {}
    bool has(int) const { return true; }
    head_weights<W> at(int, const head_weights<W>& top) const { return top; }
  };

  template <class Self, class F> static constexpr void fields(Self&, F&&) {}
  friend constexpr bool operator==(const shared&, const shared&) = default;
};

}  // namespace moeskip::exit_head
