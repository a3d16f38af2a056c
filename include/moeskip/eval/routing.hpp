// Which experts a text visits, layer by layer.
//   share_e        part of all choices that fell on expert e
//   max_violation  max_e share_e · E − 1, 0 where balance is perfect            "MaxVio", Wang et al., arXiv:2408.15664
//   variation      standard deviation of the experts' loads over their mean, 0 where balance is perfect
//                                                                    "CV", Shazeer et al., arXiv:1701.06538, section 4
//   entropy        − Σ share log share / log E: 1 where balance is perfect. Shannon's, normalised
//   dead           experts with less than a hundredth of their fair share: share · E < 0.01 (our limit)
//   confidence     mean over tokens of Σ_k p_k, the router's probability of the K experts that it chose: 1 where it is sure of
//                  them, K/E where it knows nothing               "router_confidence", flaxformer, before renormalisation
//   first_share    mean over tokens of p_1 / Σ_k p_k, how much of that the best expert has: 1/K to 1
//   distinct(t)    experts that a run of t consecutive tokens visits together, on average: what a verify of t tokens
//                  reads. Over all runs, and over those that start at a multiple of t.
//   independent(t) the same if each token chose alone, by the same marginals f_e: Σ_e 1 − (1 − f_e)^t
//                                                                   for even ones MoESD, arXiv:2505.19645, section 3
//   growth(t)      (distinct − k) / (independent − k): 1 for independent choices, 0 where a run shares its experts
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <span>
#include <vector>

#include "moeskip/eval/windows.hpp"

namespace moeskip {

/// Run lengths that are looked at.
inline constexpr std::array<int, 3> run_lengths{2, 4, 8};

struct layer_routing {
  int layer = 0, experts = 0, per_token = 0;
  long long tokens = 0;
  std::vector<long long> choices;                                       // (E) by expert
  std::array<double, run_lengths.size()> visited{}, visited_aligned{};  // distinct experts, summed over runs
  std::array<long long, run_lengths.size()> runs{}, runs_aligned{};
  double chosen_mass = 0, first_shares = 0;  // Σ_k p_k, and p_1 over it, summed over tokens

  double confidence() const { return tokens ? chosen_mass / double(tokens) : 0; }
  double first_share() const { return tokens ? first_shares / double(tokens) : 0; }
  double share(int e) const {
    long long all = 0;
    for (const long long c : choices) all += c;
    return all ? double(choices[std::size_t(e)]) / double(all) : 0;
  }
  double max_violation() const {
    double most = 0;
    for (int e = 0; e < experts; ++e) most = std::max(most, share(e));
    return most * experts - 1;
  }
  double variation() const {
    double squares = 0;
    for (int e = 0; e < experts; ++e) squares += (share(e) * experts - 1) * (share(e) * experts - 1);
    return experts ? std::sqrt(squares / experts) : 0;
  }
  double entropy() const {
    double sum = 0;
    for (int e = 0; e < experts; ++e)
      if (const double p = share(e); p > 0) sum -= p * std::log(p);
    return experts > 1 ? sum / std::log(double(experts)) : 1;
  }
  int dead() const {
    int count = 0;
    for (int e = 0; e < experts; ++e) count += share(e) * experts < 0.01;
    return count;
  }
  /// i: index into run_lengths.
  double distinct(std::size_t i) const { return runs[i] ? visited[i] / double(runs[i]) : 0; }
  double distinct_aligned(std::size_t i) const {
    return runs_aligned[i] ? visited_aligned[i] / double(runs_aligned[i]) : 0;
  }
  double independent(std::size_t i) const {
    double sum = 0;
    for (const long long c : choices) sum += 1 - std::pow(1 - double(c) / double(tokens), run_lengths[i]);
    return sum;
  }
  double growth(std::size_t i) const { return (distinct(i) - per_token) / (independent(i) - per_token); }
  double growth_aligned(std::size_t i) const {
    return (distinct_aligned(i) - per_token) / (independent(i) - per_token);
  }
};

/// Watches the routing of inference passes, and may take experts away from them: a tape for run_layers.
class routing_observer : public no_tape {
 public:
  /// living: the experts that may be chosen, by layer (of which at least experts_per_token); all of them in layers that
  /// it does not reach.
  explicit routing_observer(arena& memory, std::vector<expert_set> living = {})
      : no_tape(memory), living_(std::move(living)) {}

  expert_set living(int layer, int count) const {
    expert_set s = expert_set::first(count);
    return layer < int(living_.size()) ? s &= living_[std::size_t(layer)] : s;
  }
  template <class T> void routed(int layer, const routing<T>& r, const token_rows& rows) {
    if (layer >= int(layers_.size())) layers_.resize(std::size_t(layer) + 1);
    layer_routing& l = layers_[std::size_t(layer)];
    l.layer = layer, l.experts = int(r.probability.cols()), l.per_token = int(r.chosen.cols());
    l.choices.resize(std::size_t(l.experts));
    l.tokens += r.chosen.rows();
    for (const int e : r.chosen)
      if (e >= 0) ++l.choices[std::size_t(e)];
    for (std::size_t i = 0; i < run_lengths.size(); ++i) count_runs(l, i, r.chosen, rows);
    for (index_t n = 0; n < r.chosen.rows(); ++n) {
      double all = 0, best = 0;
      for (const int e : r.chosen.row(n))
        if (e >= 0) all += double(r.probability(n, e)), best = std::max(best, double(r.probability(n, e)));
      l.chosen_mass += all, l.first_shares += all > 0 ? best / all : 0;
    }
  }
  /// MoE layers seen so far, in order.
  std::vector<layer_routing> layers() const {
    std::vector<layer_routing> seen;
    for (const layer_routing& l : layers_)
      if (l.tokens) seen.push_back(l);
    return seen;
  }

 private:
  static void count_runs(layer_routing& l, std::size_t i, mat<const int> chosen, const token_rows& rows) {
    const int length = run_lengths[i];
    for (index_t first = 0; first + length <= rows.size(); ++first) {
      if (rows.slot[first] != rows.slot[first + length - 1]) continue;
      expert_set visited;
      for (index_t n = first; n < first + length; ++n)
        for (const int e : chosen.row(n)) visited.insert(e);
      l.visited[i] += visited.size(), ++l.runs[i];
      if (rows.position[first] % length == 0) l.visited_aligned[i] += visited.size(), ++l.runs_aligned[i];
    }
  }
  std::vector<expert_set> living_;
  std::vector<layer_routing> layers_;  // by layer; dense ones stay empty
};

}  // namespace moeskip
