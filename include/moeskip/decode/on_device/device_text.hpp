// One sequence whose loop of decoding runs where the model runs: the text, the rows of its calls, and what the loop's
// steps work on. A loop is written once, with the functions that a host would call, and then followed.
#pragma once

#include <algorithm>
#include <span>

#include "moeskip/decode/session.hpp"
#include "moeskip/ops/growing_text.hpp"

namespace moeskip::detail {

/// Rule: what asks whether a token leaves at an exit.
template <class Session, class Rule> class device_text {
 public:
  using model_type = typename Session::model_type;
  using B = typename model_type::backend_type;
  using T = typename Session::T;
  using loop_type = typename B::template loop<typename model_type::variant_type::router, Rule>;

  /// Calls have up to so many rows.
  device_text(Session& s, int rows, std::span<const int> stops)
      : session_(s),
        tokens_(s.context() + 1),
        exits_(s.context() + 1),
        drafted_(s.context() + 1),
        now_(1),
        slot_(rows),
        position_(rows),
        token_(rows),
        stops_(index_t(stops.size())),
        tape_(memory_) {
    std::copy(stops.begin(), stops.end(), stops_.data());
    loop.visits = &now().visits, loop.bad_choices = &now().bad_choices;
  }

  growing_text text() { return {tokens_.view(), exits_.view(), drafted_.view(), now_.data(), stops_.view()}; }
  growth& now() { return now_[0]; }
  arena& memory() { return memory_; }
  model_type& model() { return session_.model(); }
  B& backend() { return model().backend(); }

  loop_type loop;

  // Its steps. Rows [first, first + N) of a call are the tokens at text().at(first + n).

  /// x (N, D)
  void embed(mat<T> x, int first) {
    embed_text(backend(), x, {position_.data() + first, x.rows()}, {token_.data() + first, x.rows()}, text(), first,
               model().weights().embedding);
  }
  void layers(int from, int to, mat<T> x, int first) { model().run_layers(from, to, x, cache_, rows(first, x), tape_); }
  /// logits (N, n) of x (N, D), and their laws (N). for_rules: whether an exit rule reads them.
  void head(mat<T> logits, vec<token_law<T>> laws, mat<T> x, int exit_layer, const sampling& options,
            bool for_rules = false) {
    const auto scope = memory_.scope();
    model().head(logits, memory_.template take<T>(x.rows(), x.cols()), x, exit_layer);
    token_laws(backend(), laws, logits, options, for_rules);
  }
  /// What the skipped layers remember of x (1, D).
  void propagate(int from, mat<T> x) { model().propagate(from, model().layers(), x, cache_, rows(0, x), memory_); }

  /// Follows the loop until there are `end` tokens or fewer are left than a round may make; hands over what was made.
  /// Throws config_error where logits were not finite, or a router's choices were none.
  template <class Sink> void run(int end, Sink&& sink) {
    const int count = now().count = session_.position() + 1;
    tokens_[count - 1] = session_.pending();
    now().end = end, now().going = 1, now().rounds = session_.stats.rounds, now().visits = 0;
    loop.run();
    settle(backend());
    MOESKIP_CHECK(error, loop.clear_counters(), "a phase of a loop left blocks uncounted");
    MOESKIP_CHECK(config_error, !now().bad_choices, "the router chose expert ", now().bad_expert(),
                  ": expected different ones of ", model().sizes().experts);
    MOESKIP_CHECK(config_error, !now().damaged, "logits behind token ", now().count - 1,
                  " are not finite: weights are damaged or diverged");
    session_.meter().count_experts_read(now().visits);
    for (int i = count; i < now().count; ++i) {
      session_.push(tokens_[i]);
      sink(emitted{tokens_[i], exits_[i], drafted_[i] != 0});
    }
  }

 private:
  struct keys_values {
    Session& s;
    kv_layer<T> layer(int l) { return s.keys_values(l); }
  };
  token_rows rows(int first, mat<T> x) {
    const index_t N = x.rows();
    return {{slot_.data() + first, N}, {position_.data() + first, N}, {token_.data() + first, N}};
  }

  Session& session_;
  keys_values cache_{session_};
  buffer<int> tokens_, exits_, drafted_;
  buffer<growth> now_;
  buffer<int> slot_, position_, token_;  // zeros, and what embed() writes
  buffer<int> stops_;
  arena memory_;
  no_tape tape_;
};

}  // namespace moeskip::detail
