// A model of random weights that follows a trace: every token visits the experts that it visited there, and every exit
// says, with the same confidence, what it said there. All work is done as ever, and then overruled. So a decoder can be
// timed on a model as large as one likes whose drafts are as good, and whose experts are as local, as those of a
// trained one.
//   Tokens behind a wrong one of a draft visit the experts of the text's own token at their place.
#pragma once

#include <cmath>
#include <span>
#include <string_view>
#include <vector>

#include "trace.hpp"

namespace bench {

/// R, but for the choice.
template <class R> struct replayed {
  static constexpr std::string_view name = "replayed";
  using base_type = R;
  static constexpr int experts_per_token = R::experts_per_token;
  R base{};
  const trace* from = nullptr;

  template <class T> void choose(const ms::routed_token<T>& t) const {
    std::copy_n(from->chosen(std::min(t.position, from->tokens() - 1), t.layer), experts_per_token, t.chosen);
  }
  friend bool operator==(const replayed&, const replayed&) = default;
};

/// logits (V) of somebody who says `token` with probability `confidence`.
inline void say(ms::vec<float> logits, int token, double confidence) {
  const double c = std::clamp(confidence, 1e-6, 1 - 1e-6);
  std::fill(logits.begin(), logits.end(), 0.f);
  logits[token] = float(std::log(c * double(logits.size() - 1) / (1 - c)));
}

/// Self-drafting along a trace.
struct replayed_self {
  static constexpr std::string_view name = "replayed self";
  ms::draft::self base{};
  const trace* from = nullptr;

  template <class Session> class on {
    using T = typename Session::T;

   public:
    on(const replayed_self& o, Session& s)
        : draft_(o.base, s), from_(*o.from), watched_(std::size_t(s.model().sizes().vocab)) {}
    int exit_layer() const { return draft_.exit_layer(); }
    std::span<const int> exits() const { return draft_.exits(); }
    void leave_at(int exit_layer) { draft_.leave_at(exit_layer); }
    void watch(int exit_layer) { draft_.watch(watching_ = exit_layer); }
    ms::vec<const T> watched() const {
      if (!draft_.watched().size()) return {};
      return {watched_.data(), ms::index_t(watched_.size())};
    }
    void begin(Session& s, int room) {
      draft_.begin(s, room);
      at_ = s.position(), proposed_ = 0;
      if (watching_)
        say({watched_.data(), ms::index_t(watched_.size())}, from_.predicted(at_, watching_),
            from_.confidence(at_, watching_));
    }
    bool next(Session& s, int token, ms::vec<T> logits) {
      if (!draft_.next(s, token, logits)) return false;
      const int position = at_ + proposed_++;
      say(logits, from_.predicted(position, exit_layer()), from_.confidence(position, exit_layer()));
      return true;
    }
    void verify(Session& s, std::span<const int> tokens, ms::mat<T> logits) {
      draft_.verify(s, tokens, logits);
      for (ms::index_t n = 0; n < logits.rows(); ++n) say(logits.row(n), from_.next(at_ + int(n)), 1);
      watching_ = 0;
    }

   private:
    typename ms::draft::self::template on<Session> draft_;
    const trace& from_;
    std::vector<T> watched_;  // (V)
    int watching_ = 0, at_ = 0, proposed_ = 0;
  };
};

/// V, following a trace.
template <class V> struct following : V { using router = replayed<typename V::router>; };

/// The variant's model, `scale` times as wide everywhere, its vocabulary included; layers, experts and choices are
/// those of the trace. So each part has the same share of a token's weights.
template <class V> ms::config<following<V>> enlarged(const ms::config<V>& c, int scale, const trace& t) {
  ms::config<following<V>> out;
  out.sizes = c.sizes, out.exits = c.exits, out.exit_head = c.exit_head;
  out.sizes.dim *= scale, out.sizes.ffn *= scale, out.sizes.dense_ffn *= scale, out.sizes.shared_ffn *= scale;
  out.sizes.heads *= scale, out.sizes.kv_heads *= scale, out.sizes.vocab *= scale;
  out.router = {c.router, &t};
  return out;
}

}  // namespace bench
