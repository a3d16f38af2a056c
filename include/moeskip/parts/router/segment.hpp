// Segment routing: the first of every n tokens of a sequence chooses experts as R does, and the others of its segment
// take over the choice; each weighs them by its own scores. A run of tokens inside a segment reads as many experts as
// one token, which is what a speculative verify pays for. Causal: a choice rests on its token and earlier ones.
//   K experts, of which the last `Free` are each token's own choice, among those that its segment does not share
// Choices are discrete, so R's gradient is exact as it stands.
#pragma once

#include <string_view>

#include "moeskip/parts/router/wrapper.hpp"

namespace moeskip::router {

template <class R, int N, int Free = 0> struct segment {
  static constexpr std::string_view name = "segment";
  using base_type = R;
  static constexpr int K = R::experts_per_token;
  static constexpr int experts_per_token = K;
  static constexpr bool follows_previous = true;
  using made_by_warps = segment;
  static constexpr int segment_length = N;
  static_assert(N >= 1, "moeskip: a segment has at least one token");
  static_assert(Free >= 0 && Free < K, "moeskip: of K experts at most K - 1 can be a token's own");

  R base{};
  int from_layer = 0;  // layers below choose as R does: only those above a draft's exit pay for the union
  // Share of the training until which all layers choose as R does. Passes without training, validation in between among
  // them, are past it.
  float from_progress = 0;

  constexpr std::string_view problem() const { return onset_problem(from_progress); }
  static std::string parameters() { return Free ? text(N, ", ", Free, " free, ") : text(N, ", "); }

  template <class T> MOESKIP_HD void choose(const routed_token<T>& t) const {
    if (!t.previous || t.position % N == 0 || !has_begun(*this, t) || !shared_alive(t))
      return router::choose<T>(base, t);
    for (int k = 0; k < K - Free; ++k) t.chosen[k] = t.previous[k];
    if constexpr (Free > 0) {
      expert_set others = *t.alive;
      for (int k = 0; k < K - Free; ++k) others.erase(t.chosen[k]);
      int own[K];
      routed_token<T> rest = t;
      rest.alive = &others, rest.chosen = own;
      router::choose<T>(base, rest);
      for (int k = 0; k < Free; ++k) t.chosen[K - Free + k] = own[k];
    }
  }

  template <class Self, class F> static constexpr void fields(Self& self, F&& f) {
    base_fields<R>(self.base, f), f("from_layer", self.from_layer);
    f("from_progress", self.from_progress);
  }
  friend constexpr bool operator==(const segment&, const segment&) = default;

 private:
  /// Whether all that the segment shares may be chosen: expert dropout may differ from token to token.
  template <class T> MOESKIP_HD static bool shared_alive(const routed_token<T>& t) {
    for (int k = 0; k < K - Free; ++k)
      if (!t.alive->contains(t.previous[k])) return false;
    return true;
  }
};

}  // namespace moeskip::router
