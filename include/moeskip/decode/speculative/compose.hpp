// A speculative decoder from its three parts. A round: draft d tokens, verify them with one pass of the full model over
// d + 1 rows, keep the accepted ones and one token of the full model itself. Keys and values of rejected tokens are
// overwritten by the next round.
#pragma once

#include <algorithm>
#include <span>
#include <string_view>
#include <vector>

#include "moeskip/concepts/decoder.hpp"
#include "moeskip/decode/acceptance/exact.hpp"
#include "moeskip/decode/draft_length/utility.hpp"
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
    using draft_on = typename Draft::template on<Session>;
    static_assert(moeskip::DraftLength<DraftLength, Session, draft_on>,
                  "moeskip: the DraftLength of a speculative decoder needs `reads_confidence`, `longest` and "
                  "`on<Session, Draft>` with "
                  "`plan`, `judge` and `observe`. See moeskip/concepts/decoder.hpp");

    static_assert(
        KeepsAllTokens<typename Session::model_type::variant_type::router>,
        "moeskip: V::router drops tokens over a capacity at inference, so that a token's result depends on the "
        "tokens beside it: speculation would not give the text of plain decoding. Take the router without "
        "router::dropping, or decoder::autoregressive");

   public:
    on(const compose& o, Session& s)
        : acceptance_(o.acceptance), draft_(o.draft, s), length_(checked(o.length), s, draft_) {
      const std::string_view complaint = moeskip::detail::policy_problem(o.acceptance);
      MOESKIP_CHECK(config_error, complaint.empty(), complaint, ": the speculative decoder cannot use this acceptance");
      const std::size_t longest = std::size_t(std::min(o.length.longest(), s.context()));
      tokens_.reserve(longest + 1), proposals_.reserve(longest);
    }

    /// Emits 1 to `most` tokens.
    template <class Sink> void round(Session& s, sampler& draw_from, int most, Sink&& sink) {
      const auto scope = s.memory().scope();
      const index_t V = s.model().sizes().vocab;
      // The full model adds one token of its own, and the last drafted position must still fit the context.
      const int room = length_.plan(s, draft_, std::min(most - 1, s.context() - s.position() - 1));
      const mat<T> q = s.memory().template take<T>(std::max(room, 1), V);
      const mat<T> logits = s.memory().template take<T>(room + 1, V);
      vec<T> p = s.memory().template take<T>(V), rest = s.memory().template take<T>(V);
      const dice roll{draw_from.options().seed, s.position(), std::uint64_t(s.stats.rounds)};
      speculation_round report;

      draft_.begin(s, room);  // what it makes up for is not this round's
      const double start = s.seconds();
      const int dropped = propose(s, draw_from, roll, q, rest, room);
      const int drafted = int(tokens_.size()) - 1;
      const double verifying = s.seconds();
      draft_.verify(s, tokens_, logits.rows(0, drafted + 1));
      report.draft_seconds = verifying - start, report.verify_seconds = s.seconds() - verifying;

      int kept = 0;
      for (;; ++kept) {
        draw_from.distribution<T>(p, logits.row(kept));
        if (kept == 0) judge_watched(draw_from, roll, p, rest, report);
        if (kept == drafted) break;
        const int token = tokens_[std::size_t(kept) + 1];
        if (!accepts(p, q.row(kept), token, roll(stream::acceptance, kept))) break;
        proposals_[std::size_t(kept)].accepted = true;
        s.push(token);
        sink(emitted{token, draft_.exit_layer(), true});
      }
      // What was dropped is judged for the record alone: behind all that was kept the full model speaks for itself.
      if (kept == drafted && dropped >= 0)
        proposals_[std::size_t(kept)].accepted = accepts(p, q.row(kept), dropped, roll(stream::acceptance, kept));
      report.exit_layer = draft_.exit_layer();
      report.proposed = int(proposals_.size()), report.verified = drafted, report.accepted = kept;
      report.judged = std::span(proposals_).first(std::min(proposals_.size(), std::size_t(kept) + 1));
      length_.observe(report);
      s.stats.count(report);

      if (kept < drafted) {
        acceptance_.template residual<T>(rest, p, q.row(kept));
        std::swap(rest, p);
      }
      const int token = sampler::pick<T>(p, roll(stream::sampling, kept));
      s.push(token);
      sink(emitted{token, s.model().layers(), false});
    }

   private:
    /// Random numbers of a round. A position may come up again in a later round, so they depend on its number too.
    struct dice {
      seed from;
      int at;
      std::uint64_t round;
      double operator()(stream purpose, int i) const {
        return draws{from, purpose}.uniform_double(std::uint64_t(at + i), 0, round);
      }
    };

    /// Fills tokens_ with the pending token and those to verify, proposals_ with all that were proposed, and rows of q
    /// (room, V) with what they were drawn from. Returns the token that was dropped, -1 if none was.
    int propose(Session& s, sampler& draw_from, const dice& roll, mat<T> q, vec<T> logits, int room) {
      tokens_.assign(1, s.pending()), proposals_.clear();
      for (int i = 0; i < room; ++i) {
        if (!draft_.next(s, tokens_.back(), logits)) break;
        draw_from.distribution<T>(q.row(i), logits);
        const int token = sampler::pick<T>(q.row(i), roll(stream::draft, i));
        proposals_.push_back({DraftLength::reads_confidence ? top_probability<T>(logits) : 1.0});
        const verdict said = length_.judge(i, proposals_.back().confidence);
        if (said == verdict::drop) return token;
        tokens_.push_back(token);
        if (said == verdict::last) break;
      }
      return -1;
    }

    /// What a watched exit would have proposed first, and whether the full model, which says p (V), accepts it.
    void judge_watched(sampler& draw_from, const dice& roll, vec<const T> p, vec<T> scratch,
                       speculation_round& report) {
      if constexpr (ChoosesExit<draft_on>) {
        const vec<const T> watched = draft_.watched();
        if (!watched.size()) return;
        draw_from.distribution<T>(scratch, watched);
        const int token = sampler::pick<T>(scratch, roll(stream::draft, 0));
        report.watched = {top_probability<T>(watched), accepts(p, scratch, token, roll(stream::acceptance, 0))};
      }
    }

    bool accepts(vec<const T> p, vec<const T> q, int token, double u) const {
      return acceptance_.template accepts<T>(p, q, token, u);
    }
    static const DraftLength& checked(const DraftLength& o) {
      MOESKIP_CHECK(config_error, o.longest() >= 1, "num_speculations must be at least 1, got ", o.longest());
      const std::string_view complaint = moeskip::detail::policy_problem(o);
      MOESKIP_CHECK(config_error, complaint.empty(), complaint,
                    ": the speculative decoder cannot use this draft length");
      return o;
    }

    Acceptance acceptance_;
    draft_on draft_;
    typename DraftLength::template on<Session, draft_on> length_;
    std::vector<int> tokens_;  // of the round: the pending one, then those to verify
    std::vector<proposal> proposals_;
  };
};

}  // namespace moeskip::speculative_decoder
