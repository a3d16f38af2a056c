// AdamW as an optimizer policy (the update itself: ops/adamw.hpp).
#pragma once

#include <cmath>
#include <cstdint>
#include <string_view>

#include "moeskip/concepts/optimizer.hpp"
#include "moeskip/memory/buffer.hpp"
#include "moeskip/ops/adamw.hpp"

namespace moeskip {

struct adamw {
  static constexpr std::string_view name = "adamw";
  double lr = 1e-3;  // peak; the trainer's schedule scales it
  double beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8;
  double weight_decay = 0.1;  // on matrices only

  constexpr std::string_view problem() const {
    if (!(beta1 >= 0 && beta1 < 1 && beta2 >= 0 && beta2 < 1)) return "beta1 and beta2 must be in [0, 1)";
    if (!(epsilon > 0)) return "epsilon must be positive";
    if (!(weight_decay >= 0 && weight_decay < 1e6)) return "weight_decay must be 0 or more, and finite";
    return {};
  }
  template <class Self, class F> static constexpr void fields(Self& self, F&& f) {
    f("lr", self.lr), f("beta1", self.beta1), f("beta2", self.beta2), f("epsilon", self.epsilon);
    f("weight_decay", self.weight_decay);
  }

  template <class B> struct on {
    using T = scalar_t<B>;
    buffer<T> first_moment, second_moment;
    explicit on(index_t size) : first_moment(size), second_moment(size) {}

    template <class F> void blocks(F&& f) { f("first_moment", first_moment), f("second_moment", second_moment); }

    /// w = weights [offset, offset + w.size()) of the block, g their gradients; t counts updates from 1.
    void update(B& b, const adamw& o, vec<T> w, vec<const T> g, index_t offset, double rate, std::uint64_t t,
                double gradient_scale, bool decays) {
      const adamw_step step{rate,
                            o.beta1,
                            o.beta2,
                            o.epsilon,
                            decays ? o.weight_decay : 0.0,
                            1 - std::pow(o.beta1, double(t)),
                            1 - std::pow(o.beta2, double(t)),
                            gradient_scale};
      adamw_update(b, w, {first_moment.data() + offset, w.size()}, {second_moment.data() + offset, w.size()}, g, step);
    }
  };
  friend constexpr bool operator==(const adamw&, const adamw&) = default;
};

}  // namespace moeskip
