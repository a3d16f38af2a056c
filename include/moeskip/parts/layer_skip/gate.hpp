// A learned gate in front of a layer. With s = w · norm(x) + open of a token's stream x,
//   afterwards       y = layer(x) where s > 0, else x: the layer does not run
//   while training   y = x + g · (layer(x) − x),  g = sigmoid((s + noise) / temperature)
// noise is logistic, so the gate of a token is open (s + noise > 0) with chance sigmoid(s), and gates learn to be sure:
// the binary concrete distribution (Maddison et al. 2017, arXiv:1611.00712). The mean of these chances over all gates and
// tokens is drawn to `keep`:
//   loss += pull · (mean − keep)²
// An exit rule that compares an exit with the one before (cosine, patience) sees no change where a token passed all
// layers between them, and takes that for agreement.
// Deciding per token, causally, by a router of its own is what Mixture-of-Depths does for a fixed number of tokens of a
// batch (arXiv:2404.02258); without that number a token's path does not depend on other tokens.
#pragma once

#include <string_view>

namespace moeskip::layer_skip {

struct gate {
  static constexpr std::string_view name = "gate";
  static constexpr bool has_gates = true;
  int first = 2, spared = 1;  // layers [first, layers − spared) have a gate
  float keep = 0.6f;          // share of open gates that training aims at
  float pull = 1;
  float open = 2;  // s of a gate that has learned nothing
  float temperature = 0.5f;

  constexpr bool gates(int layer, int layers) const { return layer >= first && layer < layers - spared; }
  constexpr std::string_view problem() const {
    if (first < 0 || spared < 0) return "layer_skip.first and layer_skip.spared must be at least 0";
    if (!(keep > 0 && keep <= 1)) return "layer_skip.keep must be above 0 and at most 1";
    if (!(pull >= 0 && pull < 1e6f)) return "layer_skip.pull must be at least 0 and finite";
    if (!(open > -1e3f && open < 1e3f)) return "layer_skip.open must be finite";
    if (!(temperature > 0 && temperature < 1e3f)) return "layer_skip.temperature must be positive and finite";
    return {};
  }
  template <class Self, class F> static constexpr void fields(Self& self, F&& f) {
    f("first", self.first), f("spared", self.spared), f("keep", self.keep), f("pull", self.pull);
    f("open", self.open), f("temperature", self.temperature);
  }
  friend constexpr bool operator==(const gate&, const gate&) = default;
};

}  // namespace moeskip::layer_skip
