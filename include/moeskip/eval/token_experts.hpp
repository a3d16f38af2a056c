// How far a token's id alone decides which experts it visits: "context-independent specialisation", OpenMoE,
// arXiv:2402.01739, section 4; "vocabulary specialisation", OLMoE, arXiv:2409.02060, section 5.
//   n_te                    choices of expert e by tokens with id t
//   share(t, e)             n_te / Σ_e' n_te'
//   information             I(id; expert) / H(expert), in [0, 1]: 1 where the id decides, 0 where it says nothing
//   predicted(from)         share of these choices that fall on the K experts which ids chose most in `from`, another text;
//                           an id unseen there is taken for the average one
//   predicted_blindly(from) the same without a look at ids
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "moeskip/tensor/view.hpp"

namespace moeskip {

class token_experts {
 public:
  token_experts() = default;
  token_experts(int vocab, int experts, int per_token)
      : experts_(experts),
        per_token_(per_token),
        count_(std::size_t(vocab) * std::size_t(experts)),
        of_token_(std::size_t(vocab)),
        of_expert_(std::size_t(experts)) {}

  /// One token that chose these experts (K); negative ids were not chosen.
  void add(int token, vec<const int> chosen) {
    for (const int e : chosen)
      if (e >= 0) ++count_[index(token, e)], ++of_token_[std::size_t(token)], ++of_expert_[std::size_t(e)], ++all_;
  }

  int vocab() const { return int(of_token_.size()); }
  int experts() const { return experts_; }
  long long choices(int token) const { return of_token_[std::size_t(token)]; }
  long long count(int token, int e) const { return count_[index(token, e)]; }
  double share(int token, int e) const {
    return choices(token) ? double(count_[index(token, e)]) / double(choices(token)) : 0;
  }

  double information() const {
    double mutual = 0, entropy = 0;  // nats
    const double n = double(all_);
    for (const long long c : of_expert_)
      if (c) entropy -= double(c) / n * std::log(double(c) / n);
    for (int t = 0; t < vocab(); ++t)
      for (int e = 0; e < experts_; ++e)
        if (const double c = double(count_[index(t, e)]); c > 0)
          mutual += c / n * std::log(c * n / (double(choices(t)) * double(of_expert_[std::size_t(e)])));
    return entropy > 0 ? std::max(0.0, mutual) / entropy : 0;
  }

  double predicted(const token_experts& from) const {
    const std::vector<int> average = most(from.of_expert_.data());
    long long hits = 0;
    for (int t = 0; t < vocab(); ++t) {
      if (!choices(t)) continue;
      for (const int e : from.choices(t) ? most(from.count_.data() + index(t, 0)) : average)
        hits += count_[index(t, e)];
    }
    return all_ ? double(hits) / double(all_) : 0;
  }
  double predicted_blindly(const token_experts& from) const {
    long long hits = 0;
    for (const int e : most(from.of_expert_.data())) hits += of_expert_[std::size_t(e)];
    return all_ ? double(hits) / double(all_) : 0;
  }

 private:
  std::size_t index(int token, int e) const { return std::size_t(token) * std::size_t(experts_) + std::size_t(e); }
  /// The K experts with the largest counts (E), the lowest ids among equals.
  std::vector<int> most(const long long* counts) const {
    std::vector<int> order(static_cast<std::size_t>(experts_));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return counts[a] > counts[b]; });
    order.resize(std::size_t(std::min(per_token_, experts_)));
    return order;
  }

  int experts_ = 0, per_token_ = 1;
  long long all_ = 0;
  std::vector<long long> count_;                 // (V, E)
  std::vector<long long> of_token_, of_expert_;  // (V), (E)
};

}  // namespace moeskip
