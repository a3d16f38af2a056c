// Exact: a token that left early stays pending with its stream. When a later one goes deeper, the pending ones run the
// layers that they lack in the same calls, so every layer sees true keys and values of all earlier tokens. As each
// token takes the pending ones at least as far as it goes itself, their depths never rise from one to the next:
//   depths 4 4 2, then x at full depth:   layers 0-1 for x;  2-3 for the last one and x;  4 … for all of them
// In the end every token runs every layer: what is saved is reading the weights for each of them, less the experts that
// only some of them visit.                                    as EE-LLM's "KV recomputation" (arXiv:2312.04916)
#pragma once

#include <algorithm>
#include <string_view>
#include <vector>

#include "moeskip/concepts/exit_rule.hpp"
#include "moeskip/decode/session.hpp"

namespace moeskip::missing_kv {

struct recompute {
  static constexpr std::string_view name = "recompute";
  int max_pending = 15;  // so many tokens are taken to the full depth together; with the next one 16 rows: one call

  template <class Session> class on {
    using T = typename Session::T;
    static_assert(
        KeepsAllTokens<typename Session::model_type::variant_type::router>,
        "moeskip: V::router drops tokens over a capacity at inference, so that a token's result depends on the "
        "tokens beside it: keys and values that are recomputed together would not be true ones. Take "
        "missing_kv::propagate, or the router without router::dropping");

   public:
    /// Throws config_error for a max_pending below 1.
    on(const recompute& o, Session& s) : max_pending_(o.max_pending) {
      MOESKIP_CHECK(config_error, o.max_pending >= 1, "recompute.max_pending must be at least 1, got ", o.max_pending);
      max_pending_ = std::min(o.max_pending, s.context());
      streams_ = buffer<T>(index_t(max_pending_ + 1) * s.model().sizes().dim);
      depth_.reserve(std::size_t(max_pending_) + 1);
    }

    mat<T> stream(Session& s) { return rows(s, int(depth_.size()), 1); }

    void run(Session& s, int first, int last, mat<T>, int at) {
      depth_.push_back(first);
      advance(s, last, at + 1);
      depth_.pop_back();
    }
    void left(Session& s, int depth, mat<T>, int at) {
      if (depth == s.model().layers()) return depth_.clear();  // it took the others along
      depth_.push_back(depth), end_ = at + 1;
      if (int(depth_.size()) == max_pending_) finish(s);
    }
    void finish(Session& s) {
      if (depth_.empty()) return;
      advance(s, s.model().layers(), end_);
      depth_.clear();
    }

   private:
    /// Takes the last tokens, which end before position `end`, on to layer `last`: those that are not so deep.
    void advance(Session& s, int last, int end) {
      const int count = int(depth_.size());
      while (depth_.back() < last) {
        const int level = depth_.back();
        int from = count - 1;  // the first of those that are exactly so deep
        while (from > 0 && depth_[std::size_t(from) - 1] == level) --from;
        const int next = from > 0 ? std::min(last, depth_[std::size_t(from) - 1]) : last;
        s.run(level, next, rows(s, from, count - from), end - (count - from));
        std::fill(depth_.begin() + from, depth_.end(), next);
      }
    }
    mat<T> rows(Session& s, int first, int count) {
      const int D = s.model().sizes().dim;
      return {streams_.data() + index_t(first) * D, count, D};
    }

    int max_pending_, end_ = 0;  // end_: behind the last pending token
    buffer<T> streams_;          // (max_pending + 1, D) of the pending tokens, then of the current one
    std::vector<int> depth_;     // layers that each has run
  };
};

}  // namespace moeskip::missing_kv
