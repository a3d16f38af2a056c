// A smaller model drafts, in a session beside the large one's, which follows it: tokens that it has not seen run in one
// call, those that were rejected are forgotten. In a batch its calls are merged, too.
//                                                              Leviathan et al. 2023, arXiv:2211.17192, section 2.1
// M: a moeskip::model of any variant and backend with the same vocabulary. The options do not own it: it must outlive
// every decoder made from them, and must not be drafting in two threads at once.
#pragma once

#include <algorithm>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "moeskip/decode/batch/session_beside.hpp"
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
    on(const small_model& options, Session& s) : small_(session_beside(s, checked(options.model, s))) {
      seen_.reserve(std::size_t(s.context()) + 1);
    }
    static int exit_layer() { return 0; }

    /// Keeps what the two sessions have in common; where drafting follows, catches up with the rest.
    void begin(Session& s, int room) {
      const auto& text = s.tokens();
      const auto common = std::mismatch(seen_.begin(), seen_.end(), text.begin(), text.end() - 1).first;
      seen_.erase(common, seen_.end());
      if (room == 0) return;
      if (seen_.empty()) start(s);
      const std::size_t at = seen_.size();
      seen_.insert(seen_.end(), text.begin() + std::ptrdiff_t(at), text.end() - 1);
      const auto scope = small_->memory().scope();
      if (seen_.size() > at) run(at);
    }
    /// Runs `token`, the next of the round; logits (V) are the small model's.
    bool next(Session&, int token, vec<T> logits) {
      seen_.push_back(token);
      arena& memory = small_->memory();
      const auto scope = memory.scope();
      const mat<S> x = run(seen_.size() - 1), own = memory.template take<S>(1, logits.size());
      small_->logits(own, x, small_->model().layers());
      std::transform(own.begin(), own.end(), logits.begin(), [](S logit) { return T(logit); });
      return true;
    }
    void verify(Session& s, std::span<const int> tokens, mat<T> logits) { full_pass(s, tokens, logits); }

   private:
    /// A text of which nothing was seen is run as a prompt is, in large chunks.
    void start(Session& s) {
      small_->prefill(s.tokens());
      seen_.assign(s.tokens().begin(), s.tokens().end() - 1);
    }
    /// What was seen from position `at` on through all layers; its streams (N, D), while the memory's scope lasts.
    mat<S> run(std::size_t at) {
      const index_t N = index_t(seen_.size() - at);
      const mat<S> x = small_->memory().template take<S>(N, small_->model().sizes().dim);
      small_->embed(x, {seen_.data() + at, N}, int(at));
      return small_->run(0, small_->model().layers(), x, int(at));
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

    std::shared_ptr<small_session> small_;
    std::vector<int> seen_;  // tokens whose keys and values the small session has
  };
};

}  // namespace moeskip::draft
