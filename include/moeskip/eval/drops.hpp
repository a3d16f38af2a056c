// Which tokens a capacity would drop, by their position in the sequence: where an expert takes no more than C
// assignments of a call, first choices and earlier rows come first, so the ends of sequences go without.
//   drop ratio(position) = dropped assignments / assignments of the tokens there
//   C = max(1, round(capacity factor · N · K / E))     N rows of a call
//                       "drop-towards-the-end", OpenMoE, arXiv:2402.01739, section 4; capacity as in GShard, arXiv:2006.16668
// Models here drop in training alone, and only with a router of limited capacity (but for router::dropping); this asks
// what a limit would do to any router.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "moeskip/memory/tape.hpp"
#include "moeskip/ops/experts.hpp"
#include "moeskip/tensor/rows.hpp"

namespace moeskip {

struct drop_counts {
  std::vector<long long> assigned{}, dropped{};  // by bin of positions

  double ratio(std::size_t bin) const { return assigned[bin] ? double(dropped[bin]) / double(assigned[bin]) : 0; }
  double ratio() const {
    long long all = 0, lost = 0;
    for (std::size_t b = 0; b < assigned.size(); ++b) all += assigned[b], lost += dropped[b];
    return all ? double(lost) / double(all) : 0;
  }
};

/// A tape for run_layers. Run sequences of `length` tokens; those of one call share the capacity, in the order of rows.
class drop_observer : public no_tape {
 public:
  /// Throws config_error unless there are bins, no more than tokens, and the factor is positive.
  drop_observer(arena& memory, double capacity_factor, int length, int bins = 8)
      : no_tape(memory), factor_(capacity_factor), length_(length), bins_(bins) {
    MOESKIP_CHECK(config_error, capacity_factor > 0, "drop_observer: expected a positive capacity factor, got ",
                  capacity_factor);
    MOESKIP_CHECK(config_error, bins >= 1 && bins <= length, "drop_observer: expected from 1 to ", length,
                  " bins, got ", bins);
  }

  template <class R> void routed(int layer, const R& r, const token_rows& rows) {
    const auto scope = memory().scope();
    const index_t E = r.probability.cols(), K = r.chosen.cols(), N = r.chosen.rows();
    const index_t capacity = std::max<index_t>(1, index_t(std::lround(factor_ * double(N * K) / double(E))));
    if (layer >= int(layers_.size())) layers_.resize(std::size_t(layer) + 1);
    drop_counts& c = layers_[std::size_t(layer)];
    c.assigned.resize(std::size_t(bins_)), c.dropped.resize(std::size_t(bins_));
    const dispatch plan = plan_dispatch(r.chosen, int(E), capacity, memory());
    for (index_t n = 0; n < N; ++n) {
      const std::size_t bin = std::size_t(std::min<index_t>(index_t(rows.position[n]) * bins_ / length_, bins_ - 1));
      for (index_t k = 0; k < K; ++k)
        if (r.chosen(n, k) >= 0) ++c.assigned[bin], c.dropped[bin] += plan.assignment[n * K + k] < 0;
    }
  }
  /// By layer; dense ones stay empty.
  const std::vector<drop_counts>& layers() const { return layers_; }
  /// All layers together.
  drop_counts all() const {
    drop_counts sum{std::vector<long long>(std::size_t(bins_)), std::vector<long long>(std::size_t(bins_))};
    for (const drop_counts& c : layers_)
      for (std::size_t b = 0; b < c.assigned.size(); ++b)
        sum.assigned[b] += c.assigned[b], sum.dropped[b] += c.dropped[b];
    return sum;
  }

 private:
  double factor_;
  int length_, bins_;
  std::vector<drop_counts> layers_;
};

}  // namespace moeskip
