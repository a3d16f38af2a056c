// Early exit in two parts: an ExitRule says when a token may leave, a MissingKV says what becomes of the keys and
// values of the layers that it skips. A rule declares what it reads; nothing else is computed for it. Thresholds of all
// rules point the same way: the higher, the more cautious.
#pragma once

#include <cmath>
#include <concepts>
#include <string_view>

#include "moeskip/base/config.hpp"
#include "moeskip/tensor/view.hpp"

namespace moeskip {

/// What is known of a token after exit_layer layers.
template <class T> struct exit_evidence {
  vec<const T> logits{};           // (V) before temperature; empty unless the rule reads_logits
  vec<const T> stream{};           // (D) the residual stream
  vec<const T> previous_stream{};  // (D) that at the exit before; empty at the first one, and unless reads_streams
  int exit_layer = 0;
  int position = 0;         // of the token in its sequence
  int step = 0, steps = 1;  // tokens generated before this one; the most that this generation can have
};

/// leaves(evidence, state) is asked at each exit below the full depth, from the lowest up. `state` is a rule's memory
/// of one token: every token begins with a fresh one. A rule may have `check(exits, layers)`, which throws config_error
/// for numbers that mean nothing in a model with these exits.
template <class P>
concept ExitRule = requires(const P& r, const exit_evidence<float>& seen, typename P::state& of_token) {
  { P::name } -> std::convertible_to<std::string_view>;
  { P::reads_logits } -> std::convertible_to<bool>;
  { P::reads_streams } -> std::convertible_to<bool>;
  { r.template leaves<float>(seen, of_token) } -> std::convertible_to<bool>;
};

/// What a rule that runs on a device knows: the logits in a few numbers.
struct exit_moment {
  int token;              // the most likely one
  float highest, second;  // its logit, and the next one's
  float mass, weighted;   // Σ e^d and Σ d e^d over the vocabulary, d = logit − highest
  index_t vocabulary;
  int exit_layer, position, step, steps;  // as in exit_evidence

  MOESKIP_HD float top_probability() const { return 1 / mass; }
  /// Of the most likely token over the next one.
  MOESKIP_HD float margin() const { return (1 - std::exp(second - highest)) / mass; }
  /// Σ −p log p, in nats.
  MOESKIP_HD float entropy() const { return std::log(mass) - weighted / mass; }
};
/// `MOESKIP_HD bool leaves(const exit_moment&, state&) const`: it also runs where the model runs (decode/on_device.hpp).
template <class P> concept DeviceExitRule = requires(const P& r, const exit_moment& seen, typename P::state& of_token) {
  { r.leaves(seen, of_token) } -> std::convertible_to<bool>;
};

/// A rule that leaves where confidence(evidence), at most 1, reaches `threshold`: above 1 no token leaves early.
template <class P> concept ThresholdRule = ExitRule<P> && requires(P& r, const exit_evidence<float>& seen) {
  { r.threshold } -> std::same_as<float&>;
  { r.template confidence<float>(seen) } -> std::convertible_to<double>;
};

/// on<Session>, for one generation: stream(session) is where the pending token's stream (1, D) goes; run(session,
/// first, last, x, position) takes it on to layer `last`; left(session, depth, x, position) is told where it stopped,
/// the full depth included; finish(session) leaves the keys and values of every layer to the next decoder.
template <class P, class Session>
concept MissingKV = requires(typename P::template on<Session>& d, Session& s, mat<typename Session::T> x) {
  { P::name } -> std::convertible_to<std::string_view>;
  { d.stream(s) } -> std::convertible_to<mat<typename Session::T>>;
  d.run(s, int{}, int{}, x, int{});
  d.left(s, int{}, x, int{});
  d.finish(s);
};

}  // namespace moeskip
