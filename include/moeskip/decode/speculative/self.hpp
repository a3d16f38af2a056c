// Self-drafting: the model's own first E layers propose, the remaining ones verify. Keys, values and the streams that
// left layer E are kept, so that a verification runs only layers E … L−1, for all drafted tokens at once.
//                                                                     LayerSkip, arXiv:2404.16710, section 4.3
#pragma once

#include <algorithm>
#include <limits>
#include <span>
#include <string_view>
#include <vector>

#include "moeskip/decode/session.hpp"

namespace moeskip::draft {

struct self {
  static constexpr std::string_view name = "self";
  int exit_layer = 0;  // E; 0: the deepest exit at half depth or earlier, unless the length chooses another
  // Only the first `vocabulary` ids are proposed, and only their rows of the unembedding are read: with a vocabulary as
  // byte-pair encoding leaves it, the frequent ones. 0: all.        after FR-Spec, arXiv:2502.14856
  int vocabulary = 0;

  template <class Session> struct on {
    using T = typename Session::T;

    on(const self& options, Session& s) {
      auto& m = s.model();
      exit_ = options.exit_layer ? options.exit_layer : default_exit(m);
      vocabulary_ = options.vocabulary ? options.vocabulary : m.sizes().vocab;
      MOESKIP_CHECK(config_error, vocabulary_ >= 1 && vocabulary_ <= m.sizes().vocab,
                    "draft.vocabulary must be from 1 to ", m.sizes().vocab, " ids, or 0 for all of them, got ",
                    options.vocabulary);
      MOESKIP_CHECK(config_error, exit_ < m.layers(), "exit layer ", exit_,
                    " is out of range: a draft must leave below "
                    "the full depth of ",
                    m.layers(), " layers");
      m.check_exit(exit_);
      for (int e = 2; e < m.layers() && !options.exit_layer;
           ++e)  // LayerSkip's loss gives the exit after layer 1 no weight
        if (m.configuration().exits.contains(e) && m.has_exit(e)) exits_.push_back(e);
      if (exits_.empty()) exits_.push_back(exit_);
    }
    int exit_layer() const { return exit_; }
    /// What is learned of one kind of draft says nothing of another.
    long kind() const { return vocabulary_; }
    /// The part of the unembedding that a proposal reads.
    double head_share(const Session& s) const { return double(vocabulary_) / s.model().sizes().vocab; }

    /// Exits that a draft may leave at: the trained ones, from layer 2 on. Only the chosen one where a user chose.
    std::span<const int> exits() const { return exits_; }
    /// In rounds to come.
    void leave_at(int exit_layer) { exit_ = exit_layer; }
    /// In the coming round, another exit gives its logits for the first token, on the way.
    void watch(int exit_layer) { watch_ = exit_layer; }
    vec<const T> watched() const { return watched_; }  // (V)

    /// A round of at most `room` drafted tokens.
    void begin(Session& s, int room) {
      states_ = s.memory().template take<T>(room + 1, s.model().sizes().dim);
      watched_ = s.memory().template take<T>(watch_ ? s.model().sizes().vocab : 0);
      count_ = 0;
      at_ = s.position();
    }
    /// Runs `token`, the next of the round, through the first E layers; logits (V) are the draft's.
    bool next(Session& s, int token, vec<T> logits) {
      const mat<T> x = shallow(s, {&token, 1});
      propose(s, logits, x, exit_);
      return true;
    }
    /// logits (n, V) of the full model for the n tokens of the round; those that next() has not seen run first.
    void verify(Session& s, std::span<const int> tokens, mat<T> logits) {
      if (const auto unseen = tokens.subspan(std::size_t(count_)); !unseen.empty()) shallow(s, unseen);
      const mat<T> x = states_.rows(0, count_);
      run(s, exit_, s.model().layers(), x, at_);
      s.logits(logits, x, s.model().layers());
      watch_ = 0;
    }

   private:
    /// The next tokens of the round through the first E layers; their streams (N, D).
    mat<T> shallow(Session& s, std::span<const int> tokens) {
      const int at = at_ + count_, N = int(tokens.size());
      const mat<T> x = states_.rows(count_, N);
      s.embed(x, {tokens.data(), N}, at);
      run(s, 0, exit_, x, at);
      count_ += N;
      return x;
    }
    /// logits (V) from the stream x (1, D).
    void propose(Session& s, vec<T> logits, mat<const T> x, int exit_layer) const {
      s.logits({logits.data(), 1, vocabulary_}, x, exit_layer);
      std::fill(logits.begin() + vocabulary_, logits.end(), -std::numeric_limits<T>::infinity());
    }
    /// Layers [first, last) on x (N, D), with a stop at the watched exit if the round's first token is among the rows.
    void run(Session& s, int first, int last, mat<T> x, int at) {
      if (at == at_ && first < watch_ && watch_ <= last) {
        s.run(first, watch_, x, at);
        propose(s, watched_, x.rows(0, 1), watch_);
        first = watch_;
      }
      s.run(first, last, x, at);
    }
    /// One that was trained if there is one; a shared head can be asked at other depths, too.
    template <class M> static int default_exit(const M& m) {
      for (int e = m.layers() / 2; e > 1; --e)
        if (m.configuration().exits.contains(e) && m.has_exit(e)) return e;
      for (int e = m.layers() / 2; e > 0; --e)
        if (m.has_exit(e)) return e;
      fail<config_error>(
          "this model has no exit at half depth or earlier to draft from: give it one (config.exits), or decode with "
          "ms::decoder::autoregressive");
    }
    int exit_ = 0, vocabulary_ = 0, watch_ = 0, count_ = 0, at_ = 0;
    std::vector<int> exits_;
    mat<T> states_;   // (d + 1, D) streams after layer E
    vec<T> watched_;  // (V) or empty
  };
};

}  // namespace moeskip::draft
