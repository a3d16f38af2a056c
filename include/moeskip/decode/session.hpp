// One sequence being continued: its tokens, and the keys and values of all but the last. That last token is pending:
// every round begins by running it through the model.
#pragma once

#include <algorithm>
#include <any>
#include <array>
#include <chrono>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "moeskip/concepts/decoder.hpp"
#include "moeskip/decode/routing_meter.hpp"
#include "moeskip/decode/shared_calls.hpp"
#include "moeskip/model/model.hpp"

namespace moeskip {

/// A token as it leaves a decoder.
struct emitted {
  int token;
  int exit_layer;  // layers that its logits came from
  bool drafted;    // proposed by a draft and accepted
};

struct decode_stats {
  static constexpr int positions = 16;  // of a draft, told apart

  int tokens = 0;                                          // emitted
  int rounds = 0;                                          // full passes or verifications
  int drafted = 0, accepted = 0;                           // verified drafts; of these emitted
  std::array<int, positions> drafted_at{}, accepted_at{};  // the same for the 1st, 2nd … token of a draft
  long long layer_steps = 0;                               // layers run, summed over tokens
  long long experts_read = 0;                              // distinct experts of each call and layer
  double seconds = 0;                                      // from after the prefill to the end; in a batch its share
  double draft_seconds = 0, verify_seconds = 0;            // of these; plain steps count as verification

  void count(const speculation_round& r) {
    ++rounds, drafted += r.verified, accepted += r.accepted;
    draft_seconds += r.draft_seconds, verify_seconds += r.verify_seconds;
    for (int i = 0; i < std::min(r.verified, positions); ++i) ++drafted_at[std::size_t(i)];
  }
  /// Counts what left the decoder; every round ends with a token that was not drafted.
  void count(const std::vector<emitted>& text) {
    tokens = int(text.size()), accepted = 0, accepted_at = {};
    for (int at = 0; const emitted& e : text) {
      if (at = e.drafted ? at + 1 : 0; at == 0) continue;
      ++accepted;
      if (at <= positions) ++accepted_at[std::size_t(at) - 1];
    }
  }
  decode_stats& operator+=(const decode_stats& more) {
    tokens += more.tokens, rounds += more.rounds, drafted += more.drafted, accepted += more.accepted;
    for (std::size_t i = 0; i < positions; ++i)
      drafted_at[i] += more.drafted_at[i], accepted_at[i] += more.accepted_at[i];
    layer_steps += more.layer_steps, experts_read += more.experts_read, seconds += more.seconds;
    draft_seconds += more.draft_seconds, verify_seconds += more.verify_seconds;
    return *this;
  }
  double tokens_per_second() const { return seconds > 0 ? tokens / seconds : 0; }
  double acceptance_rate() const { return drafted ? double(accepted) / drafted : 0; }
};

template <class V, class B> class session {
 public:
  using model_type = moeskip::model<V, B>;
  using T = scalar_t<B>;
  /// Prompts are run this many tokens at a time by every decoder, because a token's bits may depend on the size of a
  /// call beyond `invariant_rows`.
  static constexpr int prefill_chunk = runs_late<B> ? 2048 : 128;  // a chunk reads all experts
  /// Calls of up to this many rows give each row the same bits as a call of its own.
  static constexpr int invariant_rows = 16;

  /// With a cache of its own.
  explicit session(model_type& m) : session(m, std::make_shared<kv_cache<T>>(cache_for(m, 1)), 0, nullptr) {}
  /// One of those that share a cache of several slots, and calls.
  session(model_type& m, std::shared_ptr<kv_cache<T>> kv, int slot, shared_calls<T>* calls)
      : model_(m),
        kv_(std::move(kv)),
        slot_number_(slot),
        calls_(calls),
        tape_(memory_, m.sizes(), router::active_experts(m.configuration().router), segment_length<typename V::router>),
        slot_(std::size_t(m.sizes().context), slot),
        position_(std::size_t(m.sizes().context)),
        token_(std::size_t(m.sizes().context)) {
    for (std::size_t i = 0; i < position_.size(); ++i) position_[i] = int(i);
    tape_.ask(m.asks());
    m.bring();
  }
  session(const session&) = delete;

  static kv_cache<T> cache_for(const model_type& m, int slots) {
    const moeskip::sizes& s = m.sizes();
    return {m.layers(), slots, s.context, s.kv_groups() * s.head_size(),
            follows_previous<typename V::router> ? V::router::experts_per_token : 0};
  }

  /// Forgets everything and runs the prompt but for its last token. Throws config_error for an empty prompt, one longer
  /// than the context, or an id outside the vocabulary.
  void prefill(std::span<const int> prompt) {
    MOESKIP_CHECK(config_error, !prompt.empty(), "the prompt is empty: expected at least one token");
    MOESKIP_CHECK(config_error, int(prompt.size()) <= context(),
                  "the prompt is longer than the context: expected at most ", context(), " tokens, got ",
                  prompt.size());
    for (const int token : prompt)
      MOESKIP_CHECK(config_error, token >= 0 && token < model_.sizes().vocab, "token id ", token,
                    " is outside the vocabulary of ", model_.sizes().vocab);
    std::vector<int> all;  // the prompt may be this session's own tokens
    all.reserve(std::size_t(context()) + 1);
    all.assign(prompt.begin(), prompt.end());
    tokens_.clear();
    tape_.forget_tokens();
    const int known = int(all.size()) - 1;
    for (int first = 0; first < known; first += prefill_chunk) {
      const auto scope = memory_.scope();
      const int count = std::min(prefill_chunk, known - first);
      mat<T> x = memory_.template take<T>(count, model_.sizes().dim);
      model_.embed(x, {all.data() + first, count});
      std::copy_n(all.begin() + first, count, token_.begin() + first);
      model_.run_layers(0, model_.layers(), x, *kv_, rows(first, count), tape_);
    }
    tape_.take_passed();  // a prompt's are not counted
    tokens_ = std::move(all);
  }

  int context() const { return kv_->capacity(); }
  int position() const { return int(tokens_.size()) - 1; }  // of the pending token
  /// Throws config_error before the first prefill.
  int pending() const {
    MOESKIP_CHECK(config_error, !tokens_.empty(), "the session is empty: prefill a prompt first");
    return tokens_.back();
  }
  const std::vector<int>& tokens() const { return tokens_; }
  /// Adds a token; it becomes the pending one.
  void push(int token) { tokens_.push_back(token); }

  /// Forgets all but the first `count` tokens; the last of them becomes the pending one. Their keys and values stay.
  void truncate(int count) {
    MOESKIP_CHECK(config_error, count >= 1 && count <= int(tokens_.size()), "truncate: expected from 1 to ",
                  tokens_.size(), " tokens, got ", count);
    tokens_.resize(std::size_t(count));
  }
  /// Keys and values (1, C, G·d) of a layer: those before the pending token's position are valid.
  kv_layer<T> keys_values(int layer) {
    const kv_layer<T> all = kv_->layer(layer);
    const auto mine = [&](auto c) {
      if (c.size()) c = {c.plane(slot_number_).data(), 1, c.rows(), c.cols()};
      return c;
    };
    return {mine(all.keys), mine(all.values), mine(all.experts)};
  }

  /// Layers [first, last) on x (N, D): rows at consecutive positions from `at`. Throws config_error for layers that the
  /// model does not have, and for positions outside the context.
  mat<T> run(int first, int last, mat<T> x, int at) {
    for (index_t n = 0; n < x.rows(); n += invariant_rows) {
      const index_t count = std::min<index_t>(invariant_rows, x.rows() - n);
      const token_rows part = rows(at + int(n), int(count));
      if (calls_) calls_->run(first, last, x.rows(n, count), part, tape_.most_experts());
      else model_.run_layers(first, last, x.rows(n, count), *kv_, part, tape_);
      stats.layer_steps += count * (last - first) - tape_.take_passed();
    }
    return x;
  }
  /// The streams x (N, D) of tokens before the first layer, to be run at positions from `at`.
  void embed(mat<T> x, vec<const int> tokens, int at) {
    rows(at, int(tokens.size()));  // throws where there is no room
    model_.embed(x, tokens);
    std::copy(tokens.begin(), tokens.end(), token_.begin() + at);
  }
  void embed(mat<T> x, int token, int at) { embed(x, vec<const int>(&token, 1), at); }
  /// That of the pending token, at its position.
  void embed(mat<T> x) { embed(x, pending(), position()); }
  /// logits (N, n) of the streams x (N, D), for the first n ids of the vocabulary.
  void logits(mat<T> out, mat<const T> x, int exit_layer) {
    if (calls_) return calls_->logits(out, x, exit_layer, slot_number_);
    const auto scope = memory_.scope();
    mat<T> normed = memory_.template take<T>(std::min<index_t>(x.rows(), invariant_rows), x.cols());
    for (index_t n = 0; n < x.rows(); n += invariant_rows) {
      const index_t count = std::min<index_t>(invariant_rows, x.rows() - n);
      model_.head(out.rows(n, count), normed.rows(0, count), x.rows(n, count), exit_layer);
    }
  }
  /// Fills keys and values of layers [first, L) for rows that exited with streams x (N, D) at positions from `at`.
  void propagate(int first, mat<const T> x, int at) {
    if (calls_) return calls_->propagate(first, x, rows(at, int(x.rows())));
    model_.propagate(first, model_.layers(), x, *kv_, rows(at, int(x.rows())), memory_);
  }
  /// A clock for policies that weigh costs.
  double seconds() const {
    if (calls_) return calls_->seconds(slot_number_);
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }

  /// Where the sequences of a batch wait for each other, and which of them this is; null where it is alone.
  batch_lanes* lanes() { return calls_ ? calls_->lanes() : nullptr; }
  int slot() const { return slot_number_; }
  /// Whether others make or look at its calls of the model.
  bool shares_calls() const { return calls_ != nullptr; }

  model_type& model() { return model_; }
  const model_type& model() const { return model_; }
  arena& memory() { return memory_; }
  routing_meter& meter() { return tape_; }
  decode_stats stats;

  /// What a policy learned of this model on this machine, from one generation to the next; default-made at first.
  template <class State> State& learned() {
    for (std::any& known : learned_)
      if (auto* state = std::any_cast<State>(&known)) return *state;
    return *std::any_cast<State>(&learned_.emplace_back(State{}));
  }

 private:
  token_rows rows(int at, int count) const {
    MOESKIP_CHECK(config_error, at >= 0, "positions must be 0 or more, got ", at);
    MOESKIP_CHECK(config_error, at <= context() - count, "the context of ", context(),
                  " tokens is exhausted: position ", index_t(at) + count - 1, " is beyond it");
    return {{slot_.data(), count}, {position_.data() + at, count}, {token_.data() + at, count}};
  }

  model_type& model_;
  std::shared_ptr<kv_cache<T>> kv_;
  int slot_number_;
  shared_calls<T>* calls_;  // null: this session runs the model by itself
  arena memory_;
  routing_meter tape_;
  std::vector<int> tokens_;
  std::vector<int> slot_, position_;  // s, s, s … and 0, 1, 2 …: rows are windows of them
  std::vector<int> token_;            // the vocabulary id last embedded for each position
  std::deque<std::any> learned_;      // one of a type; a deque, since others hold references
};

}  // namespace moeskip
