// The length, and the exit layer, that buy the most tokens for their time. A token is worth 1/λ seconds, λ being the
// rate that decoding reaches at present, plainly or not. With s the chance that all tokens before have been accepted,
// the worth of going on after i verified tokens is
//   U(i, s) = −λ propose + Σ_b share_b max(0, s a_b − λ verify_one_more(i + 2) + max(0, U(i + 1, s a_b)))
// over bins b of the draft's confidence, a_b being the measured chance of acceptance. The exit with the largest U(0, 1)
// is left at; where none is above zero, the round is plain. A proposal is verified where it is worth it, and the last
// one drafted where the next is not.
//   What is learned of costs and acceptance, by exit layer, stays with the session. Other exits are asked about a token
// now and then, for a two-hundredth of the time. Speculation that has lost too much rests, so that mistaken estimates
// cost little.
//                                            after Cascade, arXiv:2506.20675 (utility), and DEL (exits by shadow tokens)
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <span>
#include <string_view>
#include <vector>

#include "moeskip/decode/draft_length/acceptance_table.hpp"
#include "moeskip/decode/draft_length/round_costs.hpp"

namespace moeskip::draft_length {

struct utility {
  static constexpr std::string_view name = "utility";
  static constexpr bool reads_confidence = true;
  int num_speculations = 12;  // at most

  constexpr int longest() const { return num_speculations; }
  constexpr std::string_view problem() const {
    return num_speculations >= 1 && num_speculations < round_costs::most_rows ? ""
                                                                              : "num_speculations must be from 1 to 15";
  }

  /// U(i, s), linear between points of a grid of s. It is convex in s, with few bends.
  class worth {
   public:
    bool known() const { return known_; }
    double operator()(int i, double s) const {
      const double x = s * steps;
      const int j = std::min(int(x), steps - 1);
      const auto& u = u_[std::size_t(i)];
      return u[std::size_t(j)] + (x - j) * (u[std::size_t(j) + 1] - u[std::size_t(j)]);
    }
    /// From the costs of proposing and of verifying(rows), in tokens.
    template <class F> void compute(const acceptance_table& accepted, int longest, double proposing, F&& verifying) {
      known_ = true;
      std::array<double, round_costs::most_rows> costs{};
      double cheapest = std::numeric_limits<double>::infinity(), likeliest = 0;
      for (int i = 0; i < longest; ++i) {
        u_[std::size_t(i)].fill(-proposing);
        costs[std::size_t(i)] = verifying(i + 2);
        cheapest = std::min(cheapest, costs[std::size_t(i)]);
      }
      u_[std::size_t(longest)].fill(0);
      accepted.each([&](double, double chance) { likeliest = std::max(likeliest, chance); });
      if (likeliest <= cheapest) return;  // not even the surest token pays for a row
      for (int i = longest - 1; i >= 0; --i)
        accepted.each([&](double share, double chance) {
          for (int j = 0; j <= steps; ++j) {
            const double s = chance * j / steps;
            u_[std::size_t(i)][std::size_t(j)] +=
                share * std::max(0.0, s - costs[std::size_t(i)] + std::max(0.0, (*this)(i + 1, s)));
          }
        });
    }

   private:
    static constexpr int steps = 16;
    std::array<std::array<double, steps + 1>, round_costs::most_rows> u_{};  // [tokens verified before][s]
    bool known_ = false;
  };

  /// What stays with the session.
  template <class Draft> struct learned {
    round_costs costs;
    std::vector<acceptance_table> accepted;  // [exit layer]
    std::vector<worth> worths;               // [phase][exit layer]
    double seconds = 0, tokens = 0;          // of late: their ratio is λ
    double elapsed = 0, lead = 0;            // seconds, in all and gained over plain decoding
    double watching = 0;                     // seconds that may go into asking other exits
    long rounds = 0, last_plain = 0, resting = 0;
    std::size_t next_watched = 0;
    std::vector<long> visits;  // [phase]: rounds that began there
    long kind = 0;             // of the draft that all this was learned of
  };

  template <class Session, class Draft> class on {
   public:
    on(const utility& o, Session& s, Draft& draft)
        : most_(o.num_speculations), mind_(s.template learned<learned<Draft>>()) {
      if constexpr (requires { draft.kind(); })
        if (mind_.kind != draft.kind()) mind_ = {}, mind_.kind = draft.kind();
      if (mind_.costs.described()) return;
      s.meter().learn();
      mind_.costs.describe(s.model().configuration(), s.meter());
      if constexpr (requires { draft.head_share(s); }) mind_.costs.set_head_share(draft.head_share(s));
      mind_.accepted.resize(std::size_t(s.model().layers()) + 1);
      mind_.worths.resize(std::size_t(s.meter().phases()) * mind_.accepted.size());
      mind_.visits.resize(std::size_t(s.meter().phases()));
    }

    int plan(Session& s, Draft& draft, int room) {
      ++mind_.rounds, trying_ = false, survival_ = 1, draft_ = &draft;
      mind_.costs.set_phase(phase_ = s.position() % s.meter().phases());
      if (mind_.rounds % describe_every == describe_first) mind_.costs.describe(s.model().configuration(), s.meter());
      watch_another(draft);
      if (!mind_.costs.known() || mind_.rounds <= warm_up || mind_.rounds - mind_.last_plain >= plain_every) return 0;
      if (mind_.resting > 0) {
        if (--mind_.resting > 0) return 0;
        mind_.lead = std::max(mind_.lead, -allowed_loss());  // one bad moment is not held against it for ever
      }
      choose(draft);
      room = std::min(room, most_);
      if (worth_of(exit_)(0, 1) > 0) return room;
      if (can_watch) return 0;  // exits that are watched tell when that changes
      if (trying_ = mind_.rounds % try_every == 0; !trying_) return 0;
      return std::min(room, 1);
    }

    verdict judge(int drafted, double confidence) {
      if (trying_) return verdict::last;
      exit_ = draft_->exit_layer();  // a draft made of several knows only now
      survival_ *= table(exit_).expected(confidence);
      const double further = worth_of(exit_)(drafted + 1, survival_);
      if (survival_ - verifying(exit_, drafted + 2) + std::max(0.0, further) <= 0) return verdict::drop;
      return further > 0 ? verdict::more : verdict::last;
    }

    void observe(const speculation_round& r) {
      mind_.costs.observe(r, watched_);
      for (const proposal& p : r.judged) table(r.exit_layer).record(p.confidence, p.accepted);
      if (watched_) table(watched_).record(r.watched.confidence, r.watched.accepted);
      const double took = r.draft_seconds + r.verify_seconds, plain = mind_.costs.plain();
      mind_.seconds = fading * mind_.seconds + took, mind_.tokens = fading * mind_.tokens + r.accepted + 1;
      mind_.elapsed += took, mind_.watching += watched_share * took;
      if (r.proposed == 0) return void(mind_.last_plain = mind_.rounds);
      mind_.lead = std::min(mind_.lead + (r.accepted + 1) * plain - took, most_lead * plain);
      if (mind_.lead < -allowed_loss()) mind_.resting = rest;
    }

   private:
    static constexpr long warm_up = 2, first_rounds = 16;  // rounds
    static constexpr long compute_every = 4,
                          compute_seldom = 16;  // rounds, where speculation pays and where it does not
    static constexpr long plain_every = 64, try_every = 64, rest = 64;
    static constexpr long describe_every = 64, describe_first = 1;  // the prompt has been routed by then
    // Speculation may be behind plain decoding by this many tokens and this share of all time, but then it rests.
    static constexpr double lost_tokens = 1.5, lost_share = 0.012, most_lead = 8;
    static constexpr double watched_share = 0.005, fading = 0.99;
    static constexpr bool can_watch = ChoosesExit<Draft>;

    double allowed_loss() const { return lost_tokens * mind_.costs.plain() + lost_share * mind_.elapsed; }
    acceptance_table& table(int exit_layer) { return mind_.accepted[std::size_t(exit_layer)]; }
    worth& worth_of(int exit_layer) {
      return mind_.worths[std::size_t(phase_) * mind_.accepted.size() + std::size_t(exit_layer)];
    }
    /// λ: a bar for what a draft must bring.
    double rate() const { return std::max(mind_.tokens / mind_.seconds, 1 / mind_.costs.plain()); }
    double verifying(int exit_layer, int rows) const { return rate() * mind_.costs.verify_one_more(exit_layer, rows); }

    void watch_another(Draft& draft) {
      watched_ = 0;
      if constexpr (can_watch) {
        const auto exits = draft.exits();
        const bool first = mind_.rounds <= long(std::min<std::size_t>(exits.size(), 4));
        if (!first && mind_.watching < mind_.costs.head()) return;
        watched_ = exits[mind_.next_watched++ % exits.size()];
        draft.watch(watched_);
        mind_.watching -= mind_.costs.head();
      }
    }

    /// The exit that is worth most, of those that were tried where the draft does not let itself be told. Now and then
    /// the worth of the one in use is computed anew, and that of another in turn.
    void choose(Draft& draft) {
      exit_ = draft.exit_layer();
      const bool beginning = mind_.rounds < first_rounds;
      const long visit =
          mind_.visits[std::size_t(phase_)]++;  // positions and plain rounds rise in step: count each phase
      const long every = worth_of(exit_)(0, 1) > 0 ? compute_every : compute_seldom;
      const bool again = visit % every == 0 || beginning;
      if (again || !worth_of(exit_).known()) compute(exit_);
      const auto better = [&](int e) {
        if (worth_of(e)(0, 1) > worth_of(exit_)(0, 1)) exit_ = e;
      };
      if constexpr (can_watch) {
        const auto exits = draft.exits();
        if (again) compute(exits[std::size_t(beginning ? visit : visit / every) % exits.size()]);
        for (const int e : exits) better(e);
        draft.leave_at(exit_);
      } else {
        for (std::size_t e = 0; e < mind_.accepted.size(); ++e) better(int(e));  // untried ones are worth nothing
      }
    }
    void compute(int e) {
      worth_of(e).compute(table(e), most_, rate() * mind_.costs.propose(e),
                          [&](int rows) { return verifying(e, rows); });
    }

    int most_;
    learned<Draft>& mind_;
    double survival_ = 1;
    Draft* draft_ = nullptr;
    int exit_ = 0, watched_ = 0, phase_ = 0;
    bool trying_ = false;
  };
};

}  // namespace moeskip::draft_length
