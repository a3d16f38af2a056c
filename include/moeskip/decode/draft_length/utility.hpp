// The length, and the exit layer, that buy the most tokens for their time. A token is worth 1/λ seconds, λ being the rate
// that decoding reaches at present, plainly or not. With s the chance that all tokens before have been accepted, the worth
// of going on after i verified tokens is
//   U(i, s) = −λ propose + Σ_b share_b max(0, s a_b − λ verify_one_more(i + 2) + max(0, U(i + 1, s a_b)))
// over bins b of the draft's confidence, a_b being the measured chance of acceptance. The exit with the largest U(0, 1) is
// left at; where none is above zero, the round is plain. A proposal is verified where it is worth it, and the last one
// drafted where the next is not.
//   What is learned of costs and acceptance stays with the session. Other exits are asked about a token now and then, for
// a hundredth of the time. Speculation that has lost the time of 1.5 plain tokens rests, so a mistaken estimate costs little.
//                                            after Cascade, arXiv:2506.20675 (utility), and DEL (exits by shadow tokens)
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>
#include <vector>

#include "moeskip/decode/draft_length/acceptance_table.hpp"
#include "moeskip/decode/draft_length/round_costs.hpp"

namespace moeskip::draft_length {

struct utility {
  static constexpr std::string_view name = "utility";
  int num_speculations = 12;  // at most

  constexpr int longest() const { return num_speculations; }
  constexpr std::string_view problem() const {
    return num_speculations >= 1 && num_speculations < round_costs::most_rows ? ""
                                                                              : "num_speculations must be from 1 to 15";
  }

  /// U(i, s) on a grid of s: halvings by quarters, down to 1/16.
  struct worth {
    static constexpr int levels = 17;
    std::array<std::array<double, levels>, round_costs::most_rows + 1> u{};

    static double chance(int level) { return std::exp2(-0.25 * level); }
    double operator()(int i, double s) const {
      if (s <= chance(levels - 1)) return 0;
      return u[std::size_t(i)][std::size_t(std::lround(-4 * std::log2(s)))];
    }
  };

  /// What stays with the session.
  template <class Draft> struct learned {
    round_costs costs;
    std::vector<acceptance_table> accepted;  // [exit layer]
    double seconds = 0, tokens = 0;          // of late: their ratio is λ
    double lead = 0;                         // seconds gained over plain decoding, less what rests have written off
    double watching = 0;                     // seconds that may go into asking other exits
    long rounds = 0, last_plain = 0;
    long resting = 0, next_rest = 128;  // rounds
    std::size_t next_watched = 0;
  };

  template <class Session, class Draft> class on {
   public:
    on(const utility& o, Session& s, Draft&) : most_(o.num_speculations), mind_(s.template learned<learned<Draft>>()) {
      if (mind_.costs.described()) return;
      mind_.costs.describe(s.model().configuration());
      mind_.accepted.resize(std::size_t(s.model().layers()) + 1);
    }

    int plan(Session&, Draft& draft, int room) {
      ++mind_.rounds, trying_ = false;
      room = std::min(room, most_);
      watch_another(draft);
      if (mind_.rounds <= warm_up || mind_.rounds - mind_.last_plain >= plain_every) return 0;
      if (mind_.resting > 0)
        return --mind_.resting, trying_ = !can_watch && mind_.resting == 0, trying_ ? std::min(room, 1) : 0;
      choose(draft, room);
      survival_ = 1;
      return worth_(0, 1) > 0 ? room : rest_unless_watched();
    }

    verdict judge(int drafted, double confidence) {
      if (trying_) return verdict::last;
      survival_ *= table(exit_).expected(confidence);
      const double further = worth_(drafted + 1, survival_);
      if (survival_ - rate() * mind_.costs.verify_one_more(exit_, drafted + 2) + std::max(0.0, further) <= 0)
        return verdict::drop;
      return further > 0 ? verdict::more : verdict::last;
    }

    void observe(const speculation_round& r) {
      mind_.costs.observe(r);
      for (const proposal& p : r.judged) table(r.exit_layer).record(p.confidence, p.accepted);
      if (watched_) table(watched_).record(r.watched.confidence, r.watched.accepted);
      const double took = r.draft_seconds + r.verify_seconds;
      mind_.seconds = fading * mind_.seconds + took, mind_.tokens = fading * mind_.tokens + r.accepted + 1;
      mind_.watching += watched_share * took;
      if (r.proposed == 0) return void(mind_.last_plain = mind_.rounds);
      mind_.lead = std::min(mind_.lead + (r.accepted + 1) * mind_.costs.plain() - took, 4 * mind_.costs.plain());
      if (mind_.lead > 0) mind_.next_rest = first_rest;
      if (mind_.lead < -1.5 * mind_.costs.plain()) rest();
    }

   private:
    static constexpr int warm_up = 2, plain_every = 64;  // rounds
    static constexpr long first_rest = 128, longest_rest = 4096;
    static constexpr double watched_share = 0.01, fading = 0.95;
    static constexpr bool can_watch = ChoosesExit<Draft>;

    acceptance_table& table(int exit_layer) { return mind_.accepted[std::size_t(exit_layer)]; }
    /// Tokens a second that decoding reaches: a bar for what a draft must bring.
    double rate() const { return std::max(mind_.tokens / mind_.seconds, 1 / mind_.costs.plain()); }

    void rest() {
      mind_.resting = mind_.next_rest, mind_.next_rest = std::min(2 * mind_.next_rest, longest_rest);
      mind_.lead = 0;
    }
    /// No exit pays. Exits that are watched tell when that changes; any other draft is tried again after a rest.
    int rest_unless_watched() {
      if (!can_watch) rest();
      return 0;
    }

    void watch_another(Draft& draft) {
      watched_ = 0;
      if constexpr (can_watch) {
        const auto exits = draft.exits();
        const bool beginning = mind_.rounds <= long(std::min<std::size_t>(exits.size(), 4));
        if (!beginning && mind_.watching < mind_.costs.head()) return;
        watched_ = exits[mind_.next_watched++ % exits.size()];
        draft.watch(watched_);
        if (!beginning) mind_.watching -= mind_.costs.head();
      }
    }

    void choose(Draft& draft, int room) {
      exit_ = draft.exit_layer(), worth_ = of(exit_, room);
      if constexpr (can_watch) {
        for (const int e : draft.exits())
          if (const worth w = of(e, room); w(0, 1) > worth_(0, 1)) exit_ = e, worth_ = w;
        draft.leave_at(exit_);
      }
    }

    worth of(int exit_layer, int room) const {
      const acceptance_table& known = mind_.accepted[std::size_t(exit_layer)];
      const double propose = rate() * mind_.costs.propose(exit_layer);
      worth w;
      for (int i = room - 1; i >= 0; --i) {
        const double verify = rate() * mind_.costs.verify_one_more(exit_layer, i + 2);
        for (int level = 0; level < worth::levels; ++level) {
          double sum = -propose;
          const auto add = [&](double share, double accepted) {
            const double s = worth::chance(level) * accepted;
            sum += share * std::max(0.0, s - verify + std::max(0.0, w(i + 1, s)));
          };
          if (known.records()) known.each(add);
          else add(1, known.mean());
          w.u[std::size_t(i)][std::size_t(level)] = sum;
        }
      }
      return w;
    }

    int most_;
    learned<Draft>& mind_;
    worth worth_;
    double survival_ = 1;
    int exit_ = 0, watched_ = 0;
    bool trying_ = false;
  };
};

}  // namespace moeskip::draft_length
