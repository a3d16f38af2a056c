// Confidence-based early exit: a token leaves at the first exit whose rule is satisfied. Layers that it skipped get the
// keys and values of its exit state, through their own projections (CALM's state propagation, arXiv:2207.07061,
// section 4.1): cheap, since no expert is touched, and approximate, so early exit changes the text. Every exit of the
// config is asked, that after layer 1 too, which LayerSkip's formula does not train: leave it out of config.exits, or
// weigh it in training.
#pragma once

#include <cmath>
#include <limits>
#include <string_view>

#include "moeskip/concepts/decoder.hpp"
#include "moeskip/decode/emit.hpp"

namespace moeskip {

namespace exit_rule {

/// Leave when the most likely token has at least this probability.
struct max_probability {
  static constexpr std::string_view name = "max_probability";
  float threshold = 0.9f;  // above 1: never

  constexpr std::string_view problem() const {
    if (!(threshold > 0 && threshold < std::numeric_limits<float>::infinity()))
      return "max_probability.threshold must be above 0 and finite (above 1: no token leaves early)";
    return {};
  }

  /// logits (V), before temperature.
  template <class T> bool leaves(vec<const T> logits, int) const {
    const T best = logits[argmax(logits)];
    const double most =
        1 / double(threshold);  // the sum of exp(logit - best) at which the probability is the threshold
    double total = 0;
    for (index_t i = 0; i < logits.size() && total <= most; ++i) total += std::exp(double(logits[i] - best));
    return total <= most;
  }
};

}  // namespace exit_rule

namespace decoder {

template <class Rule = exit_rule::max_probability> struct early_exit {
  static constexpr std::string_view name = "early_exit";
  static_assert(ExitRule<Rule>,
                "moeskip: an exit rule needs `name` and `template <class T> bool leaves(vec<const T> "
                "logits, int exit_layer) const`. See moeskip/concepts/decoder.hpp");
  Rule rule{};

  template <class Session> struct on {
    using T = typename Session::T;
    early_exit options;
    /// Throws config_error for a rule whose numbers mean nothing.
    on(const early_exit& o, Session&) : options(o) {
      const std::string_view complaint = moeskip::detail::policy_problem(o.rule);
      MOESKIP_CHECK(config_error, complaint.empty(), complaint, ": the decoder early_exit cannot use this rule");
    }

    template <class Sink> void round(Session& s, sampler& draw_from, int, Sink&& sink) {
      const auto scope = s.memory().scope();
      auto& m = s.model();
      mat<T> x = s.memory().template take<T>(1, m.sizes().dim),
             logits = s.memory().template take<T>(1, m.sizes().vocab);
      const int at = s.position();
      s.embed(x);
      int depth = 0;
      for (int e = 1; e <= m.layers(); ++e) {
        if (e < m.layers() && !m.configuration().exits.contains(e)) continue;
        s.run(depth, e, x, at);
        s.logits(logits, x, e);
        depth = e;
        if (e < m.layers() && options.rule.template leaves<T>(logits.row(0), e)) break;
      }
      if (depth < m.layers()) s.propagate(depth, x, at);
      emit_next<T>(s, draw_from, logits.row(0), depth, sink);
    }
  };
};

}  // namespace decoder
}  // namespace moeskip
