// A smaller model drafts, in a session of its own, which follows the large one's: tokens that it has not seen run with
// the first of a round in one batch, those that were rejected are forgotten.
//                                                              Leviathan et al. 2023, arXiv:2211.17192, section 2.1
// M: a moeskip::model of any variant and backend with the same vocabulary. The options do not own it: it must outlive
// every decoder made from them, and must not be drafting in two threads at once.
#pragma once

#include <algorithm>
#include <span>
#include <string_view>
#include <vector>

#include "moeskip/decode/speculative/full_pass.hpp"

namespace moeskip::draft {

template <class M> struct small_model {
  static_assert(
      requires {
        typename M::variant_type;
        typename M::backend_type;
      },
      "moeskip: draft::small_model<M> drafts with a moeskip::model<Variant, Backend>");
  static constexpr std::string_view name = "small_model";
  M* model = nullptr;

  template <class Session> class on {
    using T = typename Session::T;
    using small_session = session<typename M::variant_type, typename M::backend_type>;
    using S = typename small_session::T;

   public:
    /// Throws config_error for a model that cannot draft for the session's.
    on(const small_model& options, Session& s) : small_(checked(options.model, s)) {
      seen_.reserve(std::size_t(s.context()) + 1);
    }
    static int exit_layer() { return 0; }

    /// Keeps what the two sessions have in common.
    void begin(Session& s, int) {
      const auto& text = s.tokens();
      const auto common = std::mismatch(seen_.begin(), seen_.end(), text.begin(), text.end() - 1).first;
      seen_.erase(common, seen_.end());
    }
    /// Runs `token`, the next of the round, behind what was not seen of the text; logits (V) are the small model's.
    bool next(Session& s, int token, vec<T> logits) {
      if (seen_.empty()) start(s);
      const int at = int(seen_.size());
      if (at < s.position()) seen_.insert(seen_.end(), s.tokens().begin() + at, s.tokens().end() - 1);
      seen_.push_back(token);

      arena& memory = small_.memory();
      const auto scope = memory.scope();
      const index_t N = index_t(seen_.size()) - at, V = logits.size();
      const mat<S> x = memory.template take<S>(N, small_.model().sizes().dim), own = memory.template take<S>(1, V);
      small_.embed(x, {seen_.data() + at, N}, at);
      small_.run(0, small_.model().layers(), x, at);
      small_.logits(own, x.rows(N - 1, 1), small_.model().layers());
      std::transform(own.begin(), own.end(), logits.begin(), [](S logit) { return T(logit); });
      return true;
    }
    void verify(Session& s, std::span<const int> tokens, mat<T> logits) { full_pass(s, tokens, logits); }

   private:
    /// A text of which nothing was seen is run as a prompt is, in large chunks.
    void start(Session& s) {
      small_.prefill(s.tokens());
      seen_.assign(s.tokens().begin(), s.tokens().end() - 1);
    }
    static M& checked(M* m, Session& s) {
      MOESKIP_CHECK(config_error, m, "small_model.model is null: expected a model that drafts");
      const sizes &small = m->sizes(), &large = s.model().sizes();
      MOESKIP_CHECK(config_error, small.vocab == large.vocab,
                    "small_model.model has another vocabulary than the model it drafts for: expected ", large.vocab,
                    " tokens, got ", small.vocab);
      MOESKIP_CHECK(config_error, small.context >= large.context,
                    "small_model.model has a shorter context than the model it drafts for: expected at least ",
                    large.context, " tokens, got ", small.context);
      return *m;
    }

    small_session small_;
    std::vector<int> seen_;  // tokens whose keys and values the small session has
  };
};

}  // namespace moeskip::draft
