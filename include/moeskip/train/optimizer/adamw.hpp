// AdamW as an optimizer policy (the update itself: ops/adamw.hpp). State: two scalars a weight.
#pragma once

#include <cmath>
#include <cstdint>
#include <string_view>
#include <vector>

#include "moeskip/concepts/optimizer.hpp"
#include "moeskip/memory/buffer.hpp"
#include "moeskip/model/weights.hpp"
#include "moeskip/ops/adamw.hpp"

namespace moeskip {

struct adamw {
  static constexpr std::string_view name = "adamw";
  double lr = 1e-3;  // peak; the trainer's schedule scales it
  double beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8;
  double weight_decay = 0.1;  // not of norms and biases
  bool cautious = false;      // updates whose sign disagrees with the gradient wait: ops/adamw.hpp

  constexpr std::string_view problem() const {
    if (!(beta1 >= 0 && beta1 < 1 && beta2 >= 0 && beta2 < 1)) return "beta1 and beta2 must be in [0, 1)";
    if (!(epsilon > 0)) return "epsilon must be positive";
    if (!(weight_decay >= 0 && weight_decay < 1e6)) return "weight_decay must be 0 or more, and finite";
    return {};
  }
  template <class Self, class F> static constexpr void fields(Self& self, F&& f) {
    f("lr", self.lr), f("beta1", self.beta1), f("beta2", self.beta2), f("epsilon", self.epsilon);
    f("weight_decay", self.weight_decay), f("cautious", self.cautious);
  }

  /// The arithmetic of update t (from 1).
  adamw_step at(double rate, std::uint64_t t, double gradient_scale, tensor_kind kind) const {
    return {rate,
            beta1,
            beta2,
            epsilon,
            decays(kind) ? weight_decay : 0.0,
            1 - std::pow(beta1, double(t)),
            1 - std::pow(beta2, double(t)),
            gradient_scale,
            cautious};
  }

  template <class B> struct on {
    using T = scalar_t<B>;
    buffer<T> first_moment, second_moment;
    std::vector<tensor_info> tensors;  // both blocks are laid out like the weights
    explicit on(const std::vector<tensor_info>& all)
        : first_moment(block_size(all)), second_moment(block_size(all)), tensors(all) {}

    template <class F> void blocks(F&& f) {
      f("first_moment", tensors, first_moment), f("second_moment", tensors, second_moment);
    }

    using takes_together = on;
    /// Whether neighbours a and b may be updated in one call: a cautious update counts signs in each tensor.
    static bool together(const adamw& o, const tensor_info& a, const tensor_info& b) {
      return !o.cautious && decays(a.kind) == decays(b.kind);
    }
    /// w: the weights of one of the tensors, or of several together, g: their gradients; t counts updates from 1.
    void update(B& b, const adamw& o, const tensor_info& tensor, vec<T> w, vec<const T> g, double rate, std::uint64_t t,
                double gradient_scale) {
      adamw_update(b, w, {first_moment.data() + tensor.offset, w.size()},
                   {second_moment.data() + tensor.offset, w.size()}, g, o.at(rate, t, gradient_scale, tensor.kind));
    }
  };
  friend constexpr bool operator==(const adamw&, const adamw&) = default;
};

}  // namespace moeskip
