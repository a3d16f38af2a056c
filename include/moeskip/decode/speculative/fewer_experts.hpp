// The model drafts for itself with fewer experts a token: all layers below an exit, but only each token's best experts,
// their gates made to add up as before. Its keys and values are approximations, so a verification runs all layers anew
// and overwrites them. Where the router puts most of its weight on the first expert, a draft is as good as the model
// and reads half of its expert weights, or fewer.
#pragma once

#include <span>
#include <string_view>

#include "moeskip/decode/speculative/full_pass.hpp"

namespace moeskip::draft {

struct fewer_experts {
  static constexpr std::string_view name = "fewer_experts";
  int experts = 1;     // of a token
  int exit_layer = 0;  // 0: the full depth

  template <class Session> class on {
    using T = typename Session::T;

   public:
    /// Throws config_error for an exit that the model does not have, and for fewer than one expert.
    on(const fewer_experts& o, Session& s)
        : experts_(o.experts), depth_(o.exit_layer ? o.exit_layer : s.model().layers()) {
      MOESKIP_CHECK(config_error, o.experts >= 1, "fewer_experts.experts must be at least 1, got ", o.experts);
      s.model().check_exit(depth_);
    }
    /// None of the model's layers as they are.
    static int exit_layer() { return 0; }
    /// What is learned of one kind of draft says nothing of another.
    long kind() const { return long(depth_) * expert_set::capacity + experts_; }

    void begin(Session& s, int) { at_ = s.position(); }
    bool next(Session& s, int token, vec<T> logits) {
      const auto scope = s.memory().scope();
      const mat<T> x = s.memory().template take<T>(1, s.model().sizes().dim);
      s.embed(x, token, at_);
      const auto few = s.meter().limit_experts(experts_);
      s.run(0, depth_, x, at_++);
      s.logits({logits.data(), 1, logits.size()}, x, depth_);
      return true;
    }
    void verify(Session& s, std::span<const int> tokens, mat<T> logits) { full_pass(s, tokens, logits); }

   private:
    int experts_, depth_, at_ = 0;
  };
};

}  // namespace moeskip::draft
