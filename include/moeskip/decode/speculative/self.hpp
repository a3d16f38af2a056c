// Self-drafting: the model's own first E layers propose, the remaining ones verify. Keys, values and the streams that
// left layer E are kept, so that a verification runs only layers E … L−1, for all drafted tokens at once.
//                                                                     LayerSkip, arXiv:2404.16710, section 4.3
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "moeskip/decode/session.hpp"

namespace moeskip::draft {

struct self {
  static constexpr std::string_view name = "self";
  int exit_layer = 0;  // E; 0: the deepest exit at half depth or earlier

  template <class Session> struct on {
    using T = typename Session::T;

    on(const self& options, Session& s) {
      auto& m = s.model();
      exit_ = options.exit_layer ? options.exit_layer : default_exit(m);
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
      s.logits({logits.data(), 1, logits.size()}, x, exit_);
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
    /// Layers [first, last) on x (N, D), with a stop at the watched exit if the round's first token is among the rows.
    void run(Session& s, int first, int last, mat<T> x, int at) {
      if (at == at_ && first < watch_ && watch_ <= last) {
        s.run(first, watch_, x, at);
        s.logits({watched_.data(), 1, watched_.size()}, x.rows(0, 1), watch_);
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
    int exit_ = 0, watch_ = 0, count_ = 0, at_ = 0;
    std::vector<int> exits_;
    mat<T> states_;   // (d + 1, D) streams after layer E
    vec<T> watched_;  // (V) or empty
  };
};

}  // namespace moeskip::draft
