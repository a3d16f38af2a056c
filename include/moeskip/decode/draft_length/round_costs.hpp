// What rounds cost on this machine: the weights that each part reads (model/weights_read.hpp) times the seconds a
// weight takes, which is measured round by round, apart for drafting at each exit and for verifying n rows. A length
// that was never tried is taken to cost per weight what the longest shorter one does.
//   a draft step at exit E      layers [0, E) and a head, one row
//   a verify of n rows          layers [E, L), of their MoE layers the experts that n tokens from the round's phase on visit
//                               together (decode/routing_meter.hpp), and the heads; layers [0, E) for rows that were not
//                               drafted from
// Behind a gate, n rows read what those of them read that enter, each by itself with the chance p that the meter
// learned: the layer with chance 1 − (1 − p)^n, else the weights of gate, keys and values.
// Costs of a draft that does not run this model (exit layer 0) are seconds a token.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "moeskip/concepts/decoder.hpp"
#include "moeskip/decode/routing_meter.hpp"
#include "moeskip/model/weights_read.hpp"

namespace moeskip::draft_length {

/// An average that follows slowly, and that one measurement cannot throw off: the machine may be taken away meanwhile.
class steady_average {
 public:
  void record(double x) {
    if (count_ == 0) value_ = x;
    else if (count_ < 3) value_ = std::min(value_, x);  // first calls are slow: nothing is in the caches
    else value_ += 0.1 * (std::clamp(x, 0.5 * value_, 2 * value_) - value_);
    ++count_;
  }
  bool known() const { return count_ > 0; }
  double value() const { return value_; }

 private:
  double value_ = 0;
  int count_ = 0;
};

class round_costs {
 public:
  static constexpr int most_rows = routing_meter::longest;

  /// What is read by the routing known so far: to be told again as more becomes known.
  template <class V> void describe(const config<V>& c, const routing_meter& meter) {
    const int L = c.sizes.layers;
    head_ = head_weights_read(c.sizes);
    if (!described()) draft_head_ = head_;
    draft_.resize(std::size_t(L) + 1);
    read_.resize(std::size_t(meter.phases() * (most_rows + 1) * (L + 1)));
    for (int phase = 0; phase < meter.phases(); ++phase)
      for (int n = 1; n <= most_rows; ++n)
        for (int l = 0; l < L; ++l)
          at(phase, n, l + 1) = at(phase, n, l) + expected_weights_read(c, l, phase, n, meter);
  }
  bool described() const { return !read_.empty(); }
  /// The part of the head's weights that a proposal reads.
  void set_head_share(double share) { draft_head_ = share * head_; }
  /// Where the coming round begins: its position modulo the router's segment length.
  void set_phase(int phase) { phase_ = phase; }

  /// watched_exit: another exit that was asked on the way; 0: none.
  void observe(const speculation_round& r, int watched_exit) {
    const int e = r.exit_layer, rows = std::min(r.verified + 1, most_rows);
    const bool early = r.proposed > 0 && watched_exit > 0 && watched_exit <= e;  // asked while drafting
    if (r.proposed > 0)
      draft_[std::size_t(e)].record(r.draft_seconds / (r.proposed * draft_weights(e) + (early ? draft_head_ : 0)));
    const int fresh = e ? std::max(0, r.verified + 1 - r.proposed) : 0;
    verify_[rows].record(r.verify_seconds /
                         (fresh * at(1, e) + verify_weights(e, rows) + (watched_exit && !early ? draft_head_ : 0)));
  }

  /// Whether a plain step was measured: nothing can be said before.
  bool known() const { return verify_[1].known(); }
  double plain() const { return verify_weights(0, 1) * verify_[1].value(); }
  /// Of proposing one more token, where the layers it needs anyway are not counted.
  double propose(int exit_layer) const {
    return exit_layer ? draft_head_ * per_draft_weight(exit_layer) : per_draft_weight(0);
  }
  /// Of verifying `rows` rows instead of one fewer.
  double verify_one_more(int exit_layer, int rows) const {
    const double shallow = exit_layer ? at(1, exit_layer) * per_draft_weight(exit_layer) : 0;
    return shallow + std::max(0.0, verify(exit_layer, rows) - verify(exit_layer, rows - 1));
  }
  /// Of asking another exit.
  double head() const { return draft_head_ * verify_[1].value(); }

 private:
  /// Of layer l, by n rows from a phase on.
  template <class V>
  static double expected_weights_read(const config<V>& c, int l, int phase, int n, const routing_meter& meter) {
    const auto read_by = [&](int rows) {
      return layer_weights_read(c, l, c.sizes.is_moe(l) ? meter.distinct(l, phase, rows) : 0);
    };
    if (!c.has_gate(l)) return read_by(n);
    const double enters = meter.enters(l);
    double sum = 0, ways = 1;  // n over k
    for (int k = 0; k <= n; ways *= double(n - k) / (k + 1), ++k)
      sum += ways * std::pow(enters, k) * std::pow(1 - enters, n - k) * (k ? read_by(k) : passing_weights_read(c, l));
    return sum;
  }
  std::size_t index(int phase, int rows, int layer) const {
    return (std::size_t(phase) * (most_rows + 1) + std::size_t(rows)) * draft_.size() + std::size_t(layer);
  }
  double& at(int phase, int rows, int layer) { return read_[index(phase, rows, layer)]; }
  double at(int rows, int layer) const { return read_[index(phase_, rows, layer)]; }
  double verify_weights(int e, int rows) const { return at(rows, int(draft_.size()) - 1) - at(rows, e) + head_; }
  double draft_weights(int e) const { return e ? at(1, e) + draft_head_ : 1; }
  double per_draft_weight(int e) const {
    const steady_average& measured = draft_[std::size_t(e)];
    return measured.known() ? measured.value() : e ? verify_[1].value() : 0;
  }
  double verify(int e, int rows) const {
    int measured = rows;
    while (measured > 1 && !verify_[measured].known()) --measured;
    return verify_weights(e, rows) * verify_[measured].value();
  }

  double head_ = 0, draft_head_ = 0;      // weights
  std::vector<double> read_;              // [phase][rows][layer]: weights of the layers below it
  std::vector<steady_average> draft_;     // [exit layer]: seconds per weight
  steady_average verify_[most_rows + 1];  // [rows]: seconds per weight
  int phase_ = 0;
};

}  // namespace moeskip::draft_length
