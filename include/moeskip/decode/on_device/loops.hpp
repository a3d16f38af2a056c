// The loops that decoders become on a device. Each has
//   rule              what asks at exits
//   longest()         tokens that a round may make
//   write(text, …)    the steps of its rounds, once
//   count(stats, …)   what a session notes of rounds that were made
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "moeskip/decode/autoregressive.hpp"
#include "moeskip/decode/draft_length/fixed.hpp"
#include "moeskip/decode/early_exit.hpp"
#include "moeskip/decode/exit_rule/fixed.hpp"
#include "moeskip/decode/on_device/device_text.hpp"
#include "moeskip/decode/speculative/compose.hpp"
#include "moeskip/decode/speculative/self.hpp"

namespace moeskip::detail {

/// What loops have in common whose rounds make one token each.
struct token_by_token {
  int longest() const { return 1; }
  void count(decode_stats& stats, const growth& made, std::span<const emitted> tokens) const {
    stats.rounds = made.rounds;
    for (const emitted& e : tokens) stats.layer_steps += e.exit_layer;
  }
};

template <class Decoder, class Session> struct device_loop {
  static_assert(sizeof(Session) == 0,
                "moeskip: decoder::on_device runs decoder::autoregressive, decoder::early_exit with a rule that has "
                "`MOESKIP_HD bool leaves(const exit_moment&, state&) const` and missing_kv::propagate, and "
                "speculative_decoder::compose<draft::self, acceptance::exact, draft_length::fixed>: others look "
                "at clocks or numbers that only the host has, or are not written for a device. See "
                "moeskip/decode/on_device.hpp");
};

template <class Session> struct device_loop<decoder::autoregressive, Session> : token_by_token {
  using rule = exit_rule::fixed;
  using text_type = device_text<Session, rule>;
  using T = typename Session::T;

  device_loop(const decoder::autoregressive&, Session&) {}
  void write(text_type& text, const sampling& options) {
    auto& m = text.model();
    const mat<T> x = text.memory().template take<T>(1, m.sizes().dim);
    const mat<T> logits = text.memory().template take<T>(1, m.sizes().vocab);
    const auto law = text.memory().template take<token_law<T>>(1);
    text.embed(x, 0);
    text.layers(0, m.layers(), x, 0);
    text.head(logits, law, x, m.layers(), options);
    next_token(text.backend(), text.text(), logits, law, options.seed, m.layers());
    text.loop.jump(&text.now().going);
  }
};

template <class Rule, class Session> struct device_loop<decoder::early_exit<Rule, missing_kv::propagate>, Session>
    : token_by_token {
  static_assert(
      DeviceExitRule<Rule>,
      "moeskip: on a device an exit rule needs `MOESKIP_HD bool leaves(const exit_moment&, state&) const`. See "
      "moeskip/concepts/exit_rule.hpp");
  using rule = Rule;
  using text_type = device_text<Session, rule>;
  using T = typename Session::T;

  device_loop(const decoder::early_exit<Rule, missing_kv::propagate>& o, Session&) : rule_(o.rule) {}
  void write(text_type& text, const sampling& options) {
    auto& m = text.model();
    auto& b = text.backend();
    const growing_text& grows = text.text();
    const mat<T> x = text.memory().template take<T>(1, m.sizes().dim);
    const mat<T> logits = text.memory().template take<T>(1, m.sizes().vocab);
    const auto law = text.memory().template take<token_law<T>>(1);
    const auto state = text.memory().template take<typename Rule::state>(1);
    const auto head_of = [&](int depth, bool for_rules) { text.head(logits, law, x, depth, options, for_rules); };
    const auto end_of_token = [&](int layers) {
      next_token(b, grows, logits, law, options.seed, layers);
      text.loop.jump(&grows.now->going);
      return text.loop.jump(nullptr);  // to the end
    };
    struct exit {
      int layer;
      index_t jump;
    };
    std::vector<exit> exits;
    text.embed(x, 0);
    int depth = 0;
    const auto go_on = [&](int to) { text.layers(depth, to, x, 0), depth = to; };
    for (int e = 1; e < m.layers(); ++e) {
      if (!m.configuration().exits.contains(e)) continue;
      go_on(e);
      if (Rule::reads_logits) head_of(e, true);
      ask_exit(b, grows, law, state, rule_, m.sizes().vocab, e, exits.empty());
      exits.push_back({e, text.loop.jump(&grows.now->leaves)});
    }
    go_on(m.layers());
    head_of(depth, false);
    std::vector<index_t> ends{end_of_token(depth)};
    for (const exit& e : exits) {
      text.loop.land(e.jump);
      if (!Rule::reads_logits) head_of(e.layer, false);
      text.propagate(e.layer, x);
      ends.push_back(end_of_token(0));
    }
    for (const index_t end : ends) text.loop.land(end);
  }

 private:
  Rule rule_;
};

template <class Session>
struct device_loop<speculative_decoder::compose<draft::self, acceptance::exact, draft_length::fixed>, Session> {
  using decoder_type = speculative_decoder::compose<draft::self, acceptance::exact, draft_length::fixed>;
  using rule = exit_rule::fixed;
  using text_type = device_text<Session, rule>;
  using T = typename Session::T;

  device_loop(const decoder_type& o, Session& s)
      : drafted_(std::min(o.length.num_speculations, s.context())),
        exit_(typename draft::self::template on<Session>(o.draft, s).exit_layer()),
        ids_(o.draft.vocabulary ? o.draft.vocabulary : s.model().sizes().vocab),
        layers_(s.model().layers()) {
    MOESKIP_CHECK(config_error, longest() <= Session::invariant_rows, "num_speculations: expected at most ",
                  Session::invariant_rows - 1, " in a loop on the device, got ", drafted_);
  }
  int longest() const { return drafted_ + 1; }

  void write(text_type& text, const sampling& options) {
    auto& m = text.model();
    auto& b = text.backend();
    arena& memory = text.memory();
    const int K = drafted_;
    const mat<T> x = memory.template take<T>(K + 1, m.sizes().dim);
    const mat<T> q = memory.template take<T>(K, ids_), p = memory.template take<T>(K + 1, m.sizes().vocab);
    const auto p_law = memory.template take<token_law<T>>(K + 1), q_law = memory.template take<token_law<T>>(K);
    const auto shallow = [&](int k) { text.embed(x.rows(k, 1), k), text.layers(0, exit_, x.rows(k, 1), k); };
    for (int k = 0; k < K; ++k) {
      const vec<token_law<T>> law(&q_law[k], 1);
      shallow(k);
      text.head(q.rows(k, 1), law, x.rows(k, 1), exit_, options);
      draft_token(b, text.text(), q.rows(k, 1), law, options.seed, k);
    }
    shallow(K);
    text.layers(exit_, m.layers(), x, 0);
    text.head(p, p_law, x, m.layers(), options);
    judge_draft(b, text.text(), p, p_law, q, q_law, options.seed, exit_, m.layers());
    text.loop.jump(&text.now().going);
  }
  void count(decode_stats& stats, const growth& made, std::span<const emitted> tokens) const {
    std::size_t at = 0;
    for (; stats.rounds < made.rounds; ++at) {
      speculation_round round;
      round.exit_layer = exit_, round.proposed = round.verified = drafted_;
      for (; tokens[at].drafted; ++at) ++round.accepted;
      stats.count(round);
      stats.layer_steps += (drafted_ + 1LL) * layers_;
    }
  }

 private:
  int drafted_, exit_, ids_, layers_;
};

}  // namespace moeskip::detail
