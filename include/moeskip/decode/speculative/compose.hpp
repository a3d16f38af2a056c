// A speculative decoder from its three parts. A round: draft d tokens, verify them with one pass of the full model over
// d + 1 rows, keep the accepted ones and one token of the full model itself. Keys and values of rejected tokens are
// overwritten by the next round.
#pragma once

#include <string_view>
#include <vector>

#include "moeskip/concepts/decoder.hpp"
#include "moeskip/decode/acceptance/exact.hpp"
#include "moeskip/decode/draft_length/fixed.hpp"
#include "moeskip/decode/sampler.hpp"
#include "moeskip/decode/speculative/self.hpp"

namespace moeskip::speculative_decoder {

template <class Draft, class Acceptance, class DraftLength> struct compose {
  static constexpr std::string_view name = "speculative";
  Draft draft{};
  DraftLength length{};
  Acceptance acceptance{};

  template <class Session> class on {
    using T = typename Session::T;

    static_assert(moeskip::Draft<Draft, Session>,
                  "moeskip: the Draft of a speculative decoder needs `on<Session>` with "
                  "begin, next, verify and exit_layer. See moeskip/concepts/decoder.hpp");
    static_assert(moeskip::Acceptance<Acceptance>,
                  "moeskip: the Acceptance of a speculative decoder needs `accepts` and "
                  "`residual`. See moeskip/concepts/decoder.hpp");
    static_assert(moeskip::DraftLength<DraftLength>,
                  "moeskip: the DraftLength of a speculative decoder needs `longest`, "
                  "`more` and `observe`. See moeskip/concepts/decoder.hpp");

   public:
    on(const compose& o, Session& s) : length_(o.length), acceptance_(o.acceptance), draft_(o.draft, s) {
      MOESKIP_CHECK(config_error, o.length.longest() >= 1, "num_speculations must be at least 1, got ",
                    o.length.longest());
      const std::string_view complaint = moeskip::detail::policy_problem(o.acceptance);
      MOESKIP_CHECK(config_error, complaint.empty(), complaint, ": the speculative decoder cannot use this acceptance");
    }

    /// Emits 1 to `most` tokens.
    template <class Sink> void round(Session& s, sampler& draw_from, int most, Sink&& sink) {
      const auto scope = s.memory().scope();
      const index_t V = s.model().sizes().vocab;
      // The full model adds one token of its own, and the last drafted position must still fit the context.
      const int at = s.position();
      const int room = std::min({most - 1, s.context() - at - 1, length_.longest()});
      mat<T> q = s.memory().template take<T>(std::max(room, 1), V), logits = s.memory().template take<T>(room + 1, V);
      vec<T> p = s.memory().template take<T>(V), rest = s.memory().template take<T>(V);
      const draws proposing = stream_of(draw_from, stream::draft), judging = stream_of(draw_from, stream::acceptance);
      const draws drawing = stream_of(draw_from, stream::sampling);
      const std::uint64_t number = std::uint64_t(s.stats.rounds);  // a position may come up again in a later round

      tokens_.assign(1, s.pending());
      draft_.begin(s, room);
      double confidence = 1;
      while (int(tokens_.size()) <= room && length_.more(int(tokens_.size()) - 1, confidence)) {
        const int drafted = int(tokens_.size()) - 1;
        if (!draft_.next(s, tokens_.back(), rest)) break;
        draw_from.distribution<T>(q.row(drafted), rest);
        const double u = proposing.uniform_double(std::uint64_t(at + drafted), 0, number);
        tokens_.push_back(sampler::pick<T>(q.row(drafted), u));
        confidence = double(q(drafted, tokens_.back()));
      }
      const int drafted = int(tokens_.size()) - 1;
      draft_.verify(s, tokens_, logits.rows(0, drafted + 1));

      int kept = 0;
      for (;; ++kept) {
        draw_from.distribution<T>(p, logits.row(kept));
        if (kept == drafted) break;
        const int token = tokens_[std::size_t(kept) + 1];
        const double u = judging.uniform_double(std::uint64_t(at + kept), 0, number);
        if (!acceptance_.template accepts<T>(p, q.row(kept), token, u)) break;
        s.push(token);
        sink(emitted{token, draft_.exit_layer(), true});
      }
      if (kept < drafted) {
        acceptance_.template residual<T>(rest, p, q.row(kept));
        std::swap(rest, p);
      }
      const int token = sampler::pick<T>(p, drawing.uniform_double(std::uint64_t(at + kept), 0, number));
      length_.observe(drafted, kept);
      ++s.stats.rounds, s.stats.drafted += drafted, s.stats.accepted += kept;
      s.push(token);
      sink(emitted{token, s.model().layers(), false});
    }

   private:
    static draws stream_of(const sampler& s, stream purpose) { return {s.options().seed, purpose}; }

    DraftLength length_;
    Acceptance acceptance_;
    typename Draft::template on<Session> draft_;
    std::vector<int> tokens_;  // of the round: the pending one, then the drafted ones
  };
};

}  // namespace moeskip::speculative_decoder
