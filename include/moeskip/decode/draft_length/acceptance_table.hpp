// How likely a drafted token is accepted, by how sure the draft is of it. Counted in bins that get finer towards
// certainty; old counts fade. Before anything is known, a token is taken to be as likely as its draft believes.
#pragma once

#include <array>
#include <cstddef>

namespace moeskip::draft_length {

class acceptance_table {
  static constexpr std::array upper{0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.96, 0.99, 1.01};  // confidences, bin by bin

 public:
  static constexpr std::size_t bins = upper.size();

  void record(double confidence, bool accepted) {
    for (bin& b : bins_) b.seen *= fading, b.accepted *= fading;
    bin& b = bins_[bin_of(confidence)];
    b.seen += 1, b.accepted += accepted, b.believed += (confidence - b.believed) / b.seen;
    ++records_;
  }
  /// Chance that a token proposed with this confidence is accepted.
  double expected(double confidence) const {
    const bin& b = bins_[bin_of(confidence)];
    return (b.accepted + strength * confidence) / (b.seen + strength);
  }
  /// Calls f(share of tokens, chance that one is accepted) for every bin that anything fell into; where nothing is
  /// known, for all tokens together.
  template <class F> void each(F&& f) const {
    if (records_ == 0) return f(1, prior_mean);
    double seen = 0;
    for (const bin& b : bins_) seen += b.seen;
    for (const bin& b : bins_)
      if (b.seen > 0) f(b.seen / seen, (b.accepted + strength * b.believed) / (b.seen + strength));
  }

 private:
  static constexpr double fading = 0.995, strength = 2, prior_mean = 0.5;
  struct bin {
    double seen = 0, accepted = 0, believed = 0;  // believed: mean confidence
  };

  static std::size_t bin_of(double confidence) {
    std::size_t i = 0;
    while (i + 1 < upper.size() && !(confidence < upper[i])) ++i;
    return i;
  }
  std::array<bin, bins> bins_{};
  long records_ = 0;
};

}  // namespace moeskip::draft_length
