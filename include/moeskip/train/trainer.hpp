// The trainer: batches in, updated weights out. The state between two steps is the weights, the optimizer's blocks and
// the number of the next step; all randomness is drawn from (seed, step), so resuming is bit-exact.
#pragma once

#include <cmath>
#include <numbers>
#include <utility>

#include "moeskip/train/curriculum.hpp"
#include "moeskip/train/loss.hpp"
#include "moeskip/train/optimizer/adamw.hpp"

namespace moeskip {

/// Learning rate over time: linear warm-up, then a half cosine down to `floor` of the peak.
struct warmup_cosine {
  int warmup = 20;
  double floor = 0.1;
  double at(std::uint64_t step, std::uint64_t steps) const {
    if (step < std::uint64_t(warmup)) return double(step + 1) / double(warmup);
    const double span = double(steps) - warmup;
    const double done = span > 0 ? std::min(1.0, (double(step) - warmup) / span) : 1.0;
    return floor + (1 - floor) * 0.5 * (1 + std::cos(std::numbers::pi * done));
  }
};

template <class V, class O = adamw> struct training {
  std::uint64_t steps = 1000;  // planned; the schedule ends here
  int accumulate = 1;          // micro-batches whose gradients make one update
  double clip = 1.0;           // largest norm of the gradient; 0: no limit
  double exit_scale = 0.2;     // e_scale of LayerSkip; 0: only the top learns
  typename V::curriculum curriculum{};
  warmup_cosine schedule{};
  O optimizer{};
  seed masks{1};  // of expert and layer dropout
};

template <class T> struct step_report {
  training_losses<T> losses;
  double gradient_norm = 0;  // before clipping
  double rate = 0;           // learning rate used
};

template <class V, class B, class O = adamw> class trainer {
  static_assert(Curriculum<typename V::curriculum>,
                "moeskip: V::curriculum needs `static constexpr std::string_view name` and `layer_set enabled(const "
                "layer_set& exits, std::uint64_t step) const`. See moeskip/concepts/curriculum.hpp");
  static_assert(
      Optimizer<O, B>,
      "moeskip: the optimizer needs `name`, `lr`, `==` and a nested `on<B>` with a constructor from the number "
      "of weights, `update` and `blocks`. See moeskip/concepts/optimizer.hpp");
  using T = scalar_t<B>;
  using W = weight_t<B>;
  // Where weights are stored as the scalar itself, the model's own block is the master copy.
  static constexpr bool separate_master = !std::is_same_v<T, W>;

 public:
  trainer(model<V, B>& m, const training<V, O>& options)
      : model_(m),
        options_(options),
        gradients_(m.block().size()),
        state_(m.block().size()),
        master_(separate_master ? m.block().size() : 0),
        load_errors_(selection_biases(m)) {
    check_options();
    bind_weights<V, T>(m.configuration(), grads_, gradients_.data());
    if constexpr (separate_master)
      for (index_t i = 0; i < master_.size(); ++i) master_[i] = to<T>(m.block()[i]);
  }

  /// One update from `accumulate` batches: data(step, micro) returns each.
  template <class Data> step_report<T> step(Data&& data) {
    step_report<T> report;
    std::fill(gradients_.view().begin(), gradients_.view().end(), T{});
    for (int micro = 0; micro < options_.accumulate; ++micro) {
      const exit_weights weights = exit_weights_now();
      const auto losses =
          loss_and_gradient(model_, data(step_, std::uint64_t(micro)), weights, grads_, options_.masks,
                            step_ * std::uint64_t(options_.accumulate) + std::uint64_t(micro), memory_, progress());
      add(report.losses, losses, 1.0 / options_.accumulate);
    }
    const double average = 1.0 / options_.accumulate;
    const vec<T> loads = take_load_errors();
    report.gradient_norm = average * std::sqrt(sum_of_squares(model_.backend(), gradients_.view()));
    MOESKIP_CHECK(error, std::isfinite(report.gradient_norm), "training diverged: the gradient of step ", step_,
                  " is not finite; weights and optimizer are as they were before it");
    const double clip =
        options_.clip > 0 && report.gradient_norm > options_.clip ? options_.clip / report.gradient_norm : 1;
    report.rate = options_.optimizer.lr * options_.schedule.at(step_, options_.steps);
    ++step_;
    const vec<T> w = master();
    move_selection_biases(loads);
    for (const tensor_info& t : model_.tensors())
      if (t.start != initial::selection_bias)
        state_.update(model_.backend(), options_.optimizer, {w.data() + t.offset, t.size},
                      {gradients_.data() + t.offset, t.size}, t.offset, report.rate, step_, average * clip,
                      t.shape.size() > 1);
    publish();
    return report;
  }
  step_report<T> step(random_windows& data) {
    return step([&](std::uint64_t at, std::uint64_t micro) { return data.at(at, micro); });
  }

  /// Exits that the curriculum turns on in the coming step, with their weights in the loss.
  exit_weights exit_weights_now() const {
    const layer_set on = options_.curriculum.enabled(model_.configuration().exits, step_);
    return layerskip_weights(on, model_.layers(), options_.exit_scale);
  }

  model<V, B>& trained() { return model_; }
  const training<V, O>& options() const { return options_; }
  std::uint64_t next_step() const { return step_; }
  /// Share of the planned steps that are done, in [0, 1].
  double progress() const { return double(std::min(step_, options_.steps)) / double(options_.steps); }
  const arena& memory() const { return memory_; }

  // What a checkpoint of a run holds, beside the options (train/resume.hpp).
  vec<T> master() {
    if constexpr (separate_master) return master_.view();
    else return model_.block();
  }
  typename O::template on<B>& optimizer_state() { return state_; }
  /// Continues at `step` from weights and state that were written into master() and optimizer_state().
  void continue_at(std::uint64_t step) { step_ = step, publish(); }

 private:
  void check_options() const {
    const auto& o = options_;
    MOESKIP_CHECK(config_error, o.steps >= 1, "training.steps must be at least 1");
    MOESKIP_CHECK(config_error, o.accumulate >= 1, "training.accumulate must be at least 1, got ", o.accumulate);
    MOESKIP_CHECK(config_error, o.clip >= 0 && std::isfinite(o.clip),
                  "training.clip must be 0 (no limit) or more, got ", o.clip);
    MOESKIP_CHECK(config_error, o.exit_scale >= 0 && o.exit_scale <= 1, "training.exit_scale must be in [0, 1], got ",
                  o.exit_scale);
    MOESKIP_CHECK(config_error, o.schedule.warmup >= 0, "training.schedule.warmup must be 0 or more, got ",
                  o.schedule.warmup);
    MOESKIP_CHECK(config_error, o.schedule.floor >= 0 && o.schedule.floor <= 1,
                  "training.schedule.floor must be in [0, 1], got ", o.schedule.floor);
    MOESKIP_CHECK(config_error, o.optimizer.lr > 0 && std::isfinite(o.optimizer.lr),
                  "training.optimizer.lr must be positive, got ", o.optimizer.lr);
    for (const auto& [slot, complaint] : {std::pair{"optimizer", detail::policy_problem(o.optimizer)},
                                          std::pair{"curriculum", detail::policy_problem(o.curriculum)}})
      MOESKIP_CHECK(config_error, complaint.empty(), "training.", slot, ": ", complaint);
  }
  /// Takes what the "gradient" holds for selection biases out of it: how far each expert's load lay above the mean.
  vec<T> take_load_errors() {
    index_t at = 0;
    for (const tensor_info& t : model_.tensors())
      for (index_t i = 0; t.start == initial::selection_bias && i < t.size; ++i)
        load_errors_[at++] = std::exchange(gradients_[t.offset + i], T{});
    return {load_errors_.data(), at};
  }
  /// b −= rate · sign(load − mean load): Wang et al. 2024, arXiv:2408.15664, algorithm 1.
  void move_selection_biases(vec<const T> errors) {
    const auto rate = static_cast<real_t<T>>(router::bias_rate(model_.configuration().router));
    index_t at = 0;
    for (const tensor_info& t : model_.tensors())
      for (index_t i = 0; t.start == initial::selection_bias && i < t.size; ++i, ++at)
        if (const auto error = real_part(errors[at]); error != 0) master()[t.offset + i] -= T(error > 0 ? rate : -rate);
  }
  static index_t selection_biases(const model<V, B>& m) {
    index_t count = 0;
    for (const tensor_info& t : m.tensors()) count += t.start == initial::selection_bias ? t.size : 0;
    return count;
  }
  void publish() {
    if constexpr (separate_master) store_weights(model_.backend(), model_.block(), master_.view());
  }
  static void add(training_losses<T>& sum, const training_losses<T>& losses, double share) {
    const T part = T(real_t<T>(share));
    sum.total += part * losses.total, sum.balance += part * losses.balance, sum.z += part * losses.z;
    sum.change += part * losses.change;
    for (std::size_t e = 0; e < sum.exits.size(); ++e) sum.exits[e] += part * losses.exits[e];
  }

  model<V, B>& model_;
  training<V, O> options_;
  buffer<T> gradients_;
  model_weights<V, T> grads_;
  typename O::template on<B> state_;
  buffer<T> master_;
  buffer<T> load_errors_;
  arena memory_;
  std::uint64_t step_ = 0;
};

}  // namespace moeskip
