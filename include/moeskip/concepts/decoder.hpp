// Decoder and its parts. A decoder continues a session by one round of at least one token; a speculative one is
// composed of
//   Draft          proposes tokens
//   DraftLength    says how many
//   Acceptance     decides which of them stand
#pragma once

#include <concepts>
#include <span>
#include <string_view>

#include "moeskip/base/bit_set.hpp"
#include "moeskip/tensor/view.hpp"

namespace moeskip {

namespace detail {
struct any_sink {
  void operator()(const auto&) const {}
};
}  // namespace detail

/// on<Session> holds scratch for one generation; round(session, sampler, most, sink) emits 1 to `most` tokens. One that
/// puts work off has finish(session), which does it: every layer then has keys and values of all tokens but the last.
template <class P, class Session, class Sampler>
concept Decoder = requires(typename P::template on<Session>& d, Session& s, Sampler& sampler, detail::any_sink sink) {
  { P::name } -> std::convertible_to<std::string_view>;
  d.round(s, sampler, int{}, sink);
};

/// on<Session>: begin(session, room) starts a round of at most `room` drafted tokens; next(session, token, logits) runs
/// a token of the round one draft step further and writes the draft's logits (V) for the one after it, or returns false
/// where it has none to propose; verify(session, tokens, logits) runs what the draft left undone for all tokens of the
/// round, those that next() was not shown included, and writes the full model's logits, one row for each; exit_layer()
/// is how many of the model's layers a drafted token's logits came from.
template <class P, class Session> concept Draft = requires(typename P::template on<Session>& d, Session& s,
                                                           vec<typename Session::T> row, mat<typename Session::T> rows,
                                                           int token) {
  { P::name } -> std::convertible_to<std::string_view>;
  { d.exit_layer() } -> std::convertible_to<int>;
  d.begin(s, int{});
  { d.next(s, token, row) } -> std::convertible_to<bool>;
  d.verify(s, std::span<const int>{}, rows);
};

/// What becomes of a drafted token.
enum class verdict {
  drop,  // it is not verified, and the draft ends
  last,  // it is verified, and the draft ends
  more,  // it is verified, and the next one is drafted
};

/// A token that a draft proposed.
struct proposal {
  double confidence = 0;  // probability of the draft's most likely token
  bool accepted = false;  // for one that was dropped: whether it would have been
};

/// The outcome of a speculative round.
struct speculation_round {
  int exit_layer = 0;              // that the draft left at; 0: it does not run this model
  int proposed = 0, verified = 0;  // tokens; all but a dropped one are verified
  int accepted = 0;
  std::span<const proposal> judged{};  // in order, as far as the round tells: up to the first that was rejected
  double draft_seconds = 0, verify_seconds = 0;
  proposal watched{};  // what another exit would have proposed first, where one was asked
};

/// on<Session, Draft>, the state of one generation: plan(session, draft, room) is how many tokens, at most `room`, the
/// coming round may draft, and 0 makes it a plain step; judge(drafted, confidence) is what becomes of the token
/// proposed after `drafted` others, `confidence` being the probability of the draft's most likely token; observe(round)
/// tells the outcome. longest() is the most it ever plans. Where it does not read confidence, none is computed.
template <class P, class Session, class Draft>
concept DraftLength = requires(const P& options, typename P::template on<Session, Draft>& p, Session& s, Draft& draft,
                               int n, double confidence, const speculation_round& round) {
  { P::name } -> std::convertible_to<std::string_view>;
  { P::reads_confidence } -> std::convertible_to<bool>;
  { options.longest() } -> std::convertible_to<int>;
  { p.plan(s, draft, n) } -> std::convertible_to<int>;
  { p.judge(n, confidence) } -> std::same_as<verdict>;
  p.observe(round);
};

/// A draft that can leave the model at several depths: exits() lists them, leave_at(exit_layer) chooses one for the
/// coming rounds; watch(exit_layer) asks another exit about the first token of the coming round, whose logits (V) are
/// watched().
template <class P> concept ChoosesExit = requires(P& d, const P& c, int exit_layer) {
  { c.exits().size() } -> std::convertible_to<std::size_t>;
  d.leave_at(exit_layer);
  d.watch(exit_layer);
  c.watched();
};

/// p, q (V): what the full model and the draft would draw from. accepts(p, q, token, u) with u uniform in [0, 1);
/// residual(out, p, q) is what to draw from after a rejection.
template <class P> concept Acceptance = requires(const P& a, vec<const float> p, vec<const float> q, vec<float> out) {
  { P::name } -> std::convertible_to<std::string_view>;
  { a.template accepts<float>(p, q, int{}, double{}) } -> std::convertible_to<bool>;
  a.template residual<float>(out, p, q);
};

/// A decoder composed of the three.
template <class P, class Session, class Sampler> concept SpeculativeDecoder = Decoder<P, Session, Sampler> &&
    requires(P p) {
  p.draft;
  p.length;
  p.acceptance;
};

}  // namespace moeskip
