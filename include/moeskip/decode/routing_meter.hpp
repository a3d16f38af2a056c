// What a call of several tokens reads, learned from tokens as a session runs them, its prompt included:
//   enters(l)           chance that a token runs layer l, where a gate may let it pass by; 1 as far as nothing is known
//   distinct(l, p, n)   experts that n tokens visit together in layer l, on average, the first of them at a position
//                       that is p modulo the router's segment length; before anything is known, as if tokens chose
//                       independently and evenly
// draft_length::utility asks for it, to know what a verify of n tokens costs.
#pragma once

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numeric>
#include <utility>
#include <vector>

#include "moeskip/concepts/router.hpp"
#include "moeskip/memory/tape.hpp"
#include "moeskip/parts/sizes.hpp"
#include "moeskip/tensor/routing.hpp"
#include "moeskip/tensor/rows.hpp"

namespace moeskip {

/// Distinct experts that n tokens visit, if each chooses k of `all` independently and evenly.
inline double independent_union(double all, double k, double n) { return all * (1 - std::pow(1 - k / all, n)); }

/// The tape of a session.
class routing_meter : public no_tape {
 public:
  static constexpr int longest = 16;  // tokens of a run

  routing_meter(arena& memory, const sizes& s, double per_token, int segment_length)
      : no_tape(memory),
        experts_(s.experts),
        per_token_(per_token),
        phases_(std::min(segment_length, most_phases)),
        layers_(std::size_t(s.layers)) {}

  template <class T> void routed(int layer, const routing<T>& r, const token_rows& rows) {
    expert_set read;
    for (const int e : r.chosen) read.insert(e);
    experts_read_ += read.size();
    if (!learns()) return;
    layer_runs& l = layers_[std::size_t(layer)];
    for (index_t n = 0; n < rows.size(); ++n) learn(l, rows.position[n], r.chosen.row(n));
  }

  ask_ahead asks() const { return asks_; }
  void ask(ask_ahead which) { asks_ = which; }

  void entered(int layer, const token_rows& rows) { decided(layer, rows, true); }
  void passed(int layer, const token_rows& rows) {
    passed_ += rows.size();
    decided(layer, rows, false);
  }
  /// Rows that passed a layer by since this was last asked.
  long long take_passed() { return std::exchange(passed_, 0); }

  /// How many of its experts a token visits, the best ones; by default all that its router chooses.
  int most_experts() const { return most_experts_; }
  struct [[nodiscard]] limit_scope {
    routing_meter& meter;
    ~limit_scope() { meter.most_experts_ = expert_set::capacity; }
  };
  /// While the scope lasts.
  limit_scope limit_experts(int most) {
    most_experts_ = most;
    return {*this};
  }

  /// From now on tokens are learned from, one in three of them: up to `longest` unions of sets each.
  void learn() {
    learning_ = true;
    while (std::gcd(every_, phases_) > 1) ++every_;
    for (layer_runs& l : layers_) l.mean.resize(std::size_t(phases_ * longest));
  }
  /// Another text begins: its tokens do not follow those seen.
  void forget_tokens() {
    for (layer_runs& l : layers_) std::fill(std::begin(l.position), std::end(l.position), 0);
  }
  int phases() const { return phases_; }
  double distinct(int layer, int phase, int tokens) const {
    const double independent = independent_union(experts_, per_token_, tokens);
    const layer_runs& l = layers_[std::size_t(layer)];
    if (l.mean.empty() || tokens > longest) return independent;
    return l.mean[std::size_t(phase * longest + tokens - 1)].with_prior(independent);
  }
  double enters(int layer) const { return layers_[std::size_t(layer)].enters.with_prior(1); }
  /// Distinct experts of each call and layer, added up since the last reset.
  long long experts_read() const { return experts_read_; }
  void reset_experts_read() { experts_read_ = 0; }
  /// Of calls that were made where this does not look on.
  void count_experts_read(long long more) { experts_read_ += more; }

 private:
  static constexpr int most_phases = 64;               // what is learned of longer segments is a mean over them
  static constexpr double prior = 1, memory_of = 200;  // observations
  struct average {
    double value = 0, count = 0;
    void record(double x) {
      count = std::min(count + 1, memory_of);
      value += (x - value) / count;
    }
    double with_prior(double expected) const { return (value * count + prior * expected) / (count + prior); }
  };
  struct layer_runs {
    average enters;              // 1 for a token that ran the layer, 0 for one that passed
    std::vector<average> mean;   // (phases, longest)
    expert_set at[longest];      // experts of the token at a position modulo `longest`
    int position[longest] = {};  // that position plus one; 0: none yet
    int until_next = 1;
  };

  /// Tokens that visit fewer experts than their router chose are not as others are.
  bool learns() const { return learning_ && most_experts_ >= expert_set::capacity; }
  void decided(int layer, const token_rows& rows, bool in) {
    if (!learns()) return;
    for (index_t n = 0; n < rows.size(); ++n) layers_[std::size_t(layer)].enters.record(in);
  }
  void learn(layer_runs& l, int position, vec<const int> chosen) {
    expert_set& mine = l.at[position % longest] = {};
    for (const int e : chosen) mine.insert(e);
    l.position[position % longest] = position + 1;
    if (--l.until_next > 0) return;
    l.until_next = every_;
    expert_set all;
    for (int n = 1, from = position; n <= longest && from >= 0; ++n, --from) {
      if (l.position[from % longest] != from + 1) break;
      all |= l.at[from % longest];
      l.mean[std::size_t(from % phases_ * longest + n - 1)].record(all.size());
    }
  }

  int experts_;
  double per_token_;
  int phases_, most_experts_ = expert_set::capacity;
  bool learning_ = false;
  ask_ahead asks_ = ask_ahead::nothing;
  int every_ = 3;  // tokens from one that is learned from to the next: all phases have their turn
  long long experts_read_ = 0, passed_ = 0;
  std::vector<layer_runs> layers_;
};

}  // namespace moeskip
