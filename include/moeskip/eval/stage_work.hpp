// What decoding costs and where: weights and past that are read, products, and seconds, stage by stage.
//   bytes = weights read · their size + keys and values of the row's past · their size
//   FLOP  = 2 · (weights · rows + 2 · heads · d · past), norms and what is elementwise left out
// Rows of one call read a weight once, in a MoE layer those of the experts that they visit together.
//                                                                       MoESD, arXiv:2505.19645, section 3
#pragma once

#include <array>
#include <string_view>

#include "moeskip/concepts/observer.hpp"
#include "moeskip/tensor/view.hpp"

namespace moeskip {

struct decode_work {
  double weights = 0;   // read, each once a call
  double past = 0;      // keys and values read, scalars
  double products = 0;  // multiply-adds
  double seconds = 0;

  decode_work& operator+=(const decode_work& more) {
    weights += more.weights, past += more.past, products += more.products, seconds += more.seconds;
    return *this;
  }
  decode_work operator-(const decode_work& less) const {
    return {weights - less.weights, past - less.past, products - less.products, seconds - less.seconds};
  }
  /// per_weight, per_scalar: bytes of a stored weight, and of a key's or value's number.
  double bytes(double per_weight, double per_scalar) const { return weights * per_weight + past * per_scalar; }
  double flop() const { return 2 * products; }
};

struct stage_work {
  std::array<decode_work, stage_names.size()> of{};  // by stage
  decode_work drafted{};                             // the part of it that a counted_draft did

  decode_work& operator[](stage s) { return of[std::size_t(s)]; }
  const decode_work& operator[](stage s) const { return of[std::size_t(s)]; }
  decode_work total() const {
    decode_work sum;
    for (const decode_work& w : of) sum += w;
    return sum;
  }
  stage_work& operator+=(const stage_work& more) {
    for (std::size_t s = 0; s < of.size(); ++s) of[s] += more.of[s];
    drafted += more.drafted;
    return *this;
  }
};

/// A draft whose work is counted apart; all else is the draft's own.
template <class Draft> struct counted_draft {
  static constexpr std::string_view name = Draft::name;
  Draft base{};
  stage_work* to = nullptr;  // `done` of the counted_session that it drafts in

  template <class Session> struct on : Draft::template on<Session> {
    using base_on = typename Draft::template on<Session>;
    on(const counted_draft& o, Session& s) : base_on(o.base, s), to_(*o.to) {}

    bool next(Session& s, int token, vec<typename Session::T> logits) {
      const decode_work before = to_.total();
      const bool proposed = base_on::next(s, token, logits);
      to_.drafted += to_.total() - before;
      return proposed;
    }

   private:
    stage_work& to_;
  };
};

}  // namespace moeskip
