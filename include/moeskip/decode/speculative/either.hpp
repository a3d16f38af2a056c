// Two drafts: Second proposes in the rounds in which First has nothing to say about the first token. A round belongs to
// one of them; it ends where First runs dry. Lengths that learn tell drafts apart by their exit layer, so of two drafts
// that do not run this model, whose exit layer is 0, they learn the mean.
#pragma once

#include <span>
#include <string_view>

#include "moeskip/concepts/decoder.hpp"
#include "moeskip/decode/speculative/lookup.hpp"
#include "moeskip/decode/speculative/self.hpp"

namespace moeskip::draft {

template <class First, class Second> struct either {
  static constexpr std::string_view name = "either";
  First first{};
  Second second{};

  template <class Session> class on {
    using T = typename Session::T;
    static_assert(Draft<First, Session> && Draft<Second, Session>,
                  "moeskip: both drafts of draft::either need `on<Session>` with begin, next, verify and exit_layer. "
                  "See moeskip/concepts/decoder.hpp");

   public:
    on(const either& options, Session& s) : first_(options.first, s), second_(options.second, s) {}
    /// That of the draft whose round it is.
    int exit_layer() const { return second_drafts_ ? second_.exit_layer() : first_.exit_layer(); }

    void begin(Session& s, int room) {
      first_.begin(s, room);
      room_ = room, drafted_ = 0, second_drafts_ = false;
    }
    bool next(Session& s, int token, vec<T> logits) {
      if (!second_drafts_ && first_.next(s, token, logits)) return ++drafted_, true;
      if (drafted_ > 0) return false;
      if (!second_drafts_) second_.begin(s, room_), second_drafts_ = true;
      return second_.next(s, token, logits);
    }
    void verify(Session& s, std::span<const int> tokens, mat<T> logits) {
      if (second_drafts_) second_.verify(s, tokens, logits);
      else first_.verify(s, tokens, logits);
    }

   private:
    typename First::template on<Session> first_;
    typename Second::template on<Session> second_;
    int room_ = 0, drafted_ = 0;  // of the round; drafted_ counts First's
    bool second_drafts_ = false;  // whose round it is
  };
};

}  // namespace moeskip::draft
