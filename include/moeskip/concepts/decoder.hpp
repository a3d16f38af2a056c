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

/// more(drafted, confidence): whether to draft another token after `drafted`, the last with this probability;
/// observe(drafted, accepted) tells the outcome of a round.
template <class P> concept DraftLength = requires(P& p, int n, double confidence) {
  { P::name } -> std::convertible_to<std::string_view>;
  { p.longest() } -> std::convertible_to<int>;
  { p.more(n, confidence) } -> std::convertible_to<bool>;
  p.observe(n, n);
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
