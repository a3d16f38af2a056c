// Policies that the library does not know: the router of example 05, a mask of experts and an exit rule.
#pragma once

#include <cstdint>
#include <string_view>

#include "../../../examples/05_your_own_router.hpp"
#include "moeskip/concepts/exit_rule.hpp"
#include "moeskip/concepts/expert_dropout.hpp"
#include "moeskip/model/variant.hpp"

/// Expert dropout that lets each token do without one expert, whichever is drawn.
struct without_one {
  static constexpr std::string_view name = "without_one";

  MOESKIP_HD static constexpr moeskip::mask_scope drawn_per() { return moeskip::mask_scope::token; }
  MOESKIP_HD moeskip::expert_set survivors(const moeskip::mask_key& key, int experts, int at_least) const {
    moeskip::expert_set set = moeskip::expert_set::first(experts);
    if (experts == at_least) return set;
    const moeskip::draws draw{key.from, moeskip::stream::user};
    return set.erase(int(draw.below(std::uint64_t(experts), key.step, std::uint64_t(key.layer), key.token)));
  }
  friend constexpr bool operator==(const without_one&, const without_one&) = default;
};
static_assert(moeskip::ExpertDropout<without_one>);

/// Leaves where the most likely token's logit leads by so much.
struct leads {
  static constexpr std::string_view name = "leads";
  static constexpr bool reads_logits = true, reads_streams = false;
  struct state {};
  float by = 0.5f;

  MOESKIP_HD bool leaves(const moeskip::exit_moment& seen, state&) const { return seen.highest - seen.second >= by; }
  template <class T> bool leaves(const moeskip::exit_evidence<T>& seen, state&) const {
    T highest = -1e30f, second = -1e30f;
    for (const T logit : seen.logits)
      if (logit > highest) second = highest, highest = logit;
      else if (logit > second) second = logit;
    return highest - second >= T(by);
  }
};
static_assert(moeskip::ExitRule<leads> && moeskip::DeviceExitRule<leads>);

/// Expert dropout of whole steps is drawn by the host, so this one is no function of a GPU's.
struct one_in_three {
  static constexpr std::string_view name = "one_in_three";
  moeskip::expert_set survivors(const moeskip::mask_key& key, int experts, int at_least) const {
    moeskip::expert_set set = moeskip::expert_set::first(experts);
    for (int e = int(key.step % 3); e < experts && set.size() > at_least; e += 3) set.erase(e);
    return set;
  }
  friend constexpr bool operator==(const one_in_three&, const one_in_three&) = default;
};
struct by_the_host : moeskip::variant {
  using router = tempered;
  using expert_dropout = one_in_three;
};

struct mine : moeskip::variant {
  using router = tempered;
  using expert_dropout = without_one;
};
