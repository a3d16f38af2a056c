// How often two experts are chosen by the same token: both in one layer, or one in a layer and the other in the MoE
// layer after it.
//   given(a, b) = N_ab / N_a          share of the tokens of a that visit b, too    "co-activation", OLMoE, arXiv:2409.02060
//   lift(a, b)  = N_ab N / (N_a N_b)  1 for independent choices, 0 where they never meet. Within a
//                                     layer K choices are distinct: (K − 1)/K · E/(E − 1) where all are equally likely
// Between layers this is the affinity that ExFlow (arXiv:2401.08383) places experts by.
#pragma once

#include <vector>

#include "moeskip/tensor/view.hpp"

namespace moeskip {

class expert_pairs {
 public:
  expert_pairs() = default;
  expert_pairs(int rows, int cols)
      : rows_(rows),
        cols_(cols),
        pair_(std::size_t(rows) * std::size_t(cols)),
        a_(std::size_t(rows)),
        b_(std::size_t(cols)) {}

  /// One token that chose the experts a (K) and b (K'); negative ids were not chosen.
  void add(vec<const int> a, vec<const int> b) {
    ++tokens_;
    for (const int e : a)
      if (e >= 0) ++a_[std::size_t(e)];
    for (const int f : b)
      if (f >= 0) ++b_[std::size_t(f)];
    for (const int e : a)
      for (const int f : b)
        if (e >= 0 && f >= 0) ++pair_[index(e, f)];
  }

  int rows() const { return rows_; }
  int cols() const { return cols_; }
  long long tokens() const { return tokens_; }
  long long together(int a, int b) const { return pair_[index(a, b)]; }
  double given(int a, int b) const {
    const long long n = a_[std::size_t(a)];
    return n ? double(together(a, b)) / double(n) : 0;
  }
  double lift(int a, int b) const {
    const double n = double(a_[std::size_t(a)]) * double(b_[std::size_t(b)]);
    return n > 0 ? double(together(a, b)) * double(tokens_) / n : 0;
  }

 private:
  std::size_t index(int a, int b) const { return std::size_t(a) * std::size_t(cols_) + std::size_t(b); }

  int rows_ = 0, cols_ = 0;
  long long tokens_ = 0;
  std::vector<long long> pair_;   // (rows, cols)
  std::vector<long long> a_, b_;  // tokens that chose each
};

}  // namespace moeskip
