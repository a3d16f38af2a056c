// draft::small_model, with the calls of the small model counted: each reads its weights once. It has to be dense.
#pragma once

#include <algorithm>
#include <vector>

#include "moeskip/eval/counted_session.hpp"
#include "moeskip/moeskip.hpp"

namespace bench {

namespace ms = moeskip;

template <class M> struct counted_small_model {
  static constexpr std::string_view name = "small_model";
  ms::draft::small_model<M> base{};
  ms::decode_work* to = nullptr;

  template <class Session> class on {
    using T = typename Session::T;

   public:
    on(const counted_small_model& o, Session& s) : draft_(o.base, s), to_(*o.to) {
      const ms::model_footprint f = ms::footprint(*o.base.model);
      weights_ = double(f.active_parameters);
    }
    static int exit_layer() { return 0; }
    /// Where it drafts, it first runs what it has not seen, in one call.
    void begin(Session& s, int room) {
      const auto& text = s.tokens();
      const auto common = std::mismatch(seen_.begin(), seen_.end(), text.begin(), text.end() - 1).first;
      seen_.erase(common, seen_.end());
      if (const std::size_t known = seen_.size(), all = text.size() - 1; room > 0 && known < all) {
        if (known > 0) count(double(all - known));  // else a prompt, which is nobody's
        seen_.assign(text.begin(), text.end() - 1);
      }
      draft_.begin(s, room);
    }
    bool next(Session& s, int token, ms::vec<T> logits) {
      seen_.push_back(token), count(1);
      return draft_.next(s, token, logits);
    }
    void verify(Session& s, std::span<const int> tokens, ms::mat<T> logits) { draft_.verify(s, tokens, logits); }

   private:
    void count(double rows) { to_ += {weights_, 0, weights_ * rows}; }

    typename ms::draft::small_model<M>::template on<Session> draft_;
    ms::decode_work& to_;
    double weights_;
    std::vector<int> seen_;  // tokens that the small model has run
  };
};

}  // namespace bench
