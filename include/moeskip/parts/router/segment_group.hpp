// Segments of groups: the experts stand in groups of `Size` neighbours (0 … Size−1 and so on). The first of every n
// tokens of a sequence chooses a group, that of the expert which R finds best; every token of the segment chooses with
// R among the experts of this group. A run of tokens inside a segment reads at most `Size` experts, which lie side by
// side in memory, yet each token has a choice of its own. (segment.hpp shares the choice itself.)
// Causal: a choice rests on its token and earlier ones. Choices are discrete, so R's gradient is exact as it stands.
#pragma once

#include <string_view>

#include "moeskip/parts/router/wrapper.hpp"

namespace moeskip::router {

template <class R, int N, int Size> struct segment_group {
  static constexpr std::string_view name = "segment_group";
  using base_type = R;
  static constexpr int experts_per_token = R::experts_per_token;
  static constexpr bool follows_previous = true;
  using made_by_warps = segment_group;
  static constexpr int segment_length = N;
  static_assert(N >= 1, "moeskip: a segment has at least one token");
  static_assert(Size >= experts_per_token, "moeskip: a group has at least as many experts as a token chooses");

  R base{};
  int from_layer = 0;  // layers below choose as R does: only those above a draft's exit pay for the union
  // Share of the training until which all layers choose as R does. Passes without training, validation in between among
  // them, are past it.
  float from_progress = 0;

  static std::string parameters() { return text(N, ", groups of ", Size, ", "); }
  constexpr std::string_view problem() const { return onset_problem(from_progress); }
  static constexpr std::string_view problem(int experts) {
    return experts % Size ? "sizes.experts must be a multiple of the router's group size" : "";
  }

  template <class T> MOESKIP_HD void choose(const routed_token<T>& t) const {
    const bool inherits = t.previous && t.position % N != 0 && t.previous[0] >= 0;
    const bool begun = has_begun(*this, t);
    if (!inherits || !begun) router::choose<T>(base, t);
    if (!begun) return;
    const int group = (inherits ? t.previous[0] : t.chosen[0]) / Size;
    expert_set members;
    for (int e = group * Size; e < (group + 1) * Size; ++e)
      if (t.alive->contains(e)) members.insert(e);
    if (members.size() < experts_per_token) {  // expert dropout took too many: this token is free
      if (inherits) router::choose<T>(base, t);
      return;
    }
    routed_token<T> inside = t;
    inside.alive = &members;
    router::choose<T>(base, inside);
  }

  template <class Self, class F> static constexpr void fields(Self& self, F&& f) {
    base_fields<R>(self.base, f), f("from_layer", self.from_layer);
    f("from_progress", self.from_progress);
  }
  friend constexpr bool operator==(const segment_group&, const segment_group&) = default;
};

}  // namespace moeskip::router
