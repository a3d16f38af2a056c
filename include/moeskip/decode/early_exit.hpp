// Confidence-based early exit: a token leaves at the first exit whose rule is satisfied. Every exit of the config is
// asked, that after layer 1 too, which LayerSkip's formula does not train: leave it out of config.exits, or weigh it in
// training. Rule (exit_rule/) says when to leave, MissingKV (missing_kv/) what the skipped layers remember of the
// token.
#pragma once

#include <algorithm>
#include <string_view>

#include "moeskip/concepts/decoder.hpp"
#include "moeskip/decode/emit.hpp"
#include "moeskip/decode/exit_rule/max_probability.hpp"
#include "moeskip/decode/missing_kv/propagate.hpp"
#include "moeskip/fwd.hpp"

namespace moeskip::decoder {

template <class Rule, class MissingKV> struct early_exit {
  static constexpr std::string_view name = "early_exit";
  static_assert(ExitRule<Rule>,
                "moeskip: an exit rule needs `name`, `reads_logits`, `reads_streams`, `state` and `template <class T> "
                "bool leaves(const exit_evidence<T>&, state&) const`. See moeskip/concepts/exit_rule.hpp");
  Rule rule{};
  MissingKV missing{};

  template <class Session> class on {
    using T = typename Session::T;
    static_assert(moeskip::MissingKV<MissingKV, Session>,
                  "moeskip: a policy for missing keys and values needs `name` and `on<Session>` with stream, run, left "
                  "and finish. See moeskip/concepts/exit_rule.hpp");

   public:
    /// Throws config_error for a rule whose numbers mean nothing.
    on(const early_exit& o, Session& s) : rule_(o.rule), missing_(o.missing, s) {
      if constexpr (requires { rule_.check(layer_set{}, int{}); })
        rule_.check(s.model().configuration().exits, s.model().layers());
    }

    template <class Sink> void round(Session& s, sampler& draw_from, int most, Sink&& sink) {
      const auto scope = s.memory().scope();
      auto& m = s.model();
      const mat<T> x = missing_.stream(s), logits = s.memory().template take<T>(1, m.sizes().vocab);
      const vec<T> before = s.memory().template take<T>(Rule::reads_streams ? m.sizes().dim : 0);
      typename Rule::state of_token{};
      exit_evidence<T> seen{.stream = x.row(0), .position = s.position(), .step = step_, .steps = step_ + most};
      if constexpr (Rule::reads_logits) seen.logits = logits.row(0);
      s.embed(x);

      bool leaves = false;
      while (!leaves && seen.exit_layer < m.layers()) {
        if (Rule::reads_streams && seen.exit_layer > 0) {
          std::ranges::copy(seen.stream, before.begin());
          seen.previous_stream = before;
        }
        const int next = next_exit(m, seen.exit_layer);
        missing_.run(s, seen.exit_layer, next, x, seen.position);
        seen.exit_layer = next;
        if (Rule::reads_logits) s.logits(logits, x, next);
        leaves = next < m.layers() && rule_.template leaves<T>(seen, of_token);
      }
      if (!Rule::reads_logits) s.logits(logits, x, seen.exit_layer);
      missing_.left(s, seen.exit_layer, x, seen.position);
      ++step_;
      emit_next<T>(s, draw_from, logits.row(0), seen.exit_layer, sink);
    }

    /// What the skipped layers still lack is made up for: the session is ready for any decoder.
    void finish(Session& s) { missing_.finish(s); }

   private:
    template <class M> static int next_exit(const M& m, int depth) {
      do ++depth;
      while (depth < m.layers() && !m.configuration().exits.contains(depth));
      return depth;
    }

    Rule rule_;
    typename MissingKV::template on<Session> missing_;
    int step_ = 0;  // tokens generated so far
  };
};

}  // namespace moeskip::decoder
