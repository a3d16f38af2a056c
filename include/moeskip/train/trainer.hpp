// The trainer: batches in, updated weights out. The state between two steps is the weights, the optimizer's blocks and
// the number of the next step; all randomness is drawn from (seed, step), so resuming is bit-exact.
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "moeskip/train/curriculum.hpp"
#include "moeskip/train/loss.hpp"
#include "moeskip/train/optimizer/adamw.hpp"
#include "moeskip/train/schedule.hpp"

namespace moeskip {

template <class V, class O = adamw, class S = warmup_cosine> struct training {
  std::uint64_t steps = 1000;                                     // planned; the schedule ends here
  int accumulate = 1;                                             // micro-batches whose gradients make one update
  double clip = 1.0;                                              // largest norm of the gradient; 0: no limit
  double exit_scale = 0.2;                                        // e_scale of LayerSkip; 0: only the top learns
  exit_weight_rule exit_weighting = exit_weight_rule::layerskip;  // how the exits' weights grow with depth
  double distill = 0;  // in [0, 1]: how much exits learn from the full depth (KL) instead of from the text (CE)
  typename V::curriculum curriculum{};
  S schedule{};
  O optimizer{};
  seed masks{1};   // of expert and layer dropout
  double ema = 0;  // decay of a moving average of the weights, such as 0.999; 0: none is kept
};

template <class T> struct step_report {
  training_losses<T> losses;
  double gradient_norm = 0;  // before clipping
  double rate = 0;           // learning rate used
};

template <class V, class B, class O = adamw, class S = warmup_cosine> class trainer {
  static_assert(Curriculum<typename V::curriculum>,
                "moeskip: V::curriculum needs `static constexpr std::string_view name` and `layer_set enabled(const "
                "layer_set& exits, const training_moment& now) const`. See moeskip/concepts/curriculum.hpp");
  static_assert(
      Optimizer<O, B>,
      "moeskip: the optimizer needs `name`, `lr`, `==` and a nested `on<B>` with a constructor from the list of "
      "tensors, `update` and `blocks`. See moeskip/concepts/optimizer.hpp");
  static_assert(Schedule<S>,
                "moeskip: the schedule needs `name`, `==` and `double at(std::uint64_t step, std::uint64_t steps) "
                "const`. See moeskip/train/schedule.hpp");
  using T = scalar_t<B>;
  using W = weight_t<B>;
  // Where weights are stored as the scalar itself, the model's own block is the master copy.
  static constexpr bool separate_master = !std::is_same_v<T, W>;

 public:
  using backend_type = B;

  trainer(model<V, B>& m, const training<V, O, S>& options)
      : model_(m),
        options_(options),
        gradients_(m.block().size()),
        state_(m.tensors()),
        master_(separate_master ? m.block().size() : 0),
        average_(options.ema > 0 ? m.block().size() : 0),
        load_errors_(selection_biases(m)) {
    check_options();
    updates_ = updated_at_a_time();
    bind_weights<V, T>(m.configuration(), grads_, gradients_.data());
    if constexpr (separate_master)
      for (index_t i = 0; i < master_.size(); ++i) master_[i] = to<T>(m.block()[i]);
    if (keeps_average()) std::copy(master().begin(), master().end(), average_.view().begin());
  }

  /// One update from `accumulate` batches: data(step, micro) returns each.
  template <class Data> step_report<T> step(Data&& data) {
    MOESKIP_CHECK(error, !shows_average_, "no training step while the model holds its averaged weights");
    step_report<T> report;
    const forgets_on_failure guard(model_.backend());
    if (!std::exchange(brought_, true)) bring_all();
    fill_with(model_.backend(), gradients_.view(), 0);
    for (int micro = 0; micro < options_.accumulate; ++micro) {
      const exit_weights weights = exit_weights_now();
      const auto losses = loss_and_gradient(model_, data(step_, std::uint64_t(micro)), weights, grads_, options_.masks,
                                            step_ * std::uint64_t(options_.accumulate) + std::uint64_t(micro), memory_,
                                            {.progress = progress(), .distill = options_.distill});
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
    if constexpr (!requires { requires !O::moves_selection_biases; }) move_selection_biases(loads);
    ++step_;
    const vec<T> w = master();
    for (const tensor_info& t : updates_)
      state_.update(model_.backend(), options_.optimizer, t, {w.data() + t.offset, t.size},
                    {gradients_.data() + t.offset, t.size}, report.rate, step_, average * clip);
    if (keeps_average()) {  // at first over the few steps that there were
      const double decay = std::min(options_.ema, double(step_) / double(step_ + 9));
      combine(model_.backend(), average_.view(), decay, average_.view(), 1 - decay, w);
    }
    publish();
    return report;
  }
  step_report<T> step(random_windows& data) {
    return step([&](std::uint64_t at, std::uint64_t micro) { return data.at(at, micro); });
  }

  /// Exits that the curriculum turns on in the coming step, with their weights in the loss.
  exit_weights exit_weights_now() const {
    const layer_set on =
        options_.curriculum.enabled(model_.configuration().exits, {step_, options_.steps, model_.layers()});
    return loss_weights(options_.exit_weighting, on, model_.layers(), options_.exit_scale);
  }

  model<V, B>& trained() { return model_; }
  const training<V, O, S>& options() const { return options_; }
  std::uint64_t next_step() const { return step_; }
  /// Share of the planned steps that are done, in [0, 1].
  double progress() const { return double(std::min(step_, options_.steps)) / double(options_.steps); }
  const arena& memory() const { return memory_; }

  // What a checkpoint of a run holds, beside the options (train/resume.hpp).
  vec<T> master() {
    if constexpr (separate_master) return master_.view();
    else return shows_average_ ? average_.view() : model_.block();
  }
  /// The moving average of the weights; empty where training.ema is 0.
  vec<T> average() {
    if constexpr (separate_master) return average_.view();
    else return shows_average_ ? model_.block() : average_.view();
  }
  bool keeps_average() const { return average_.size() > 0; }
  typename O::template on<B>& optimizer_state() { return state_; }
  /// Bytes of what lies beside the model: gradients, master copy, the optimizer's blocks, moving average.
  index_t state_bytes() {
    index_t scalars = gradients_.size() + master_.size() + average_.size();
    state_.blocks([&](std::string_view, const auto&, const auto& block) { scalars += block.size(); });
    return scalars * index_t(sizeof(T));
  }
  /// Continues at `step` from weights and state that were written into master() and optimizer_state().
  void continue_at(std::uint64_t step) { step_ = step, brought_ = false, publish(); }

  /// Puts the averaged weights into the model, or the trained ones back; see averaged_weights.
  void show_average(bool on) {
    MOESKIP_CHECK(config_error, keeps_average(), "there are no averaged weights: training.ema is 0");
    MOESKIP_CHECK(error, shows_average_ != on, "the model holds its ", on ? "averaged" : "trained", " weights already");
    shows_average_ = on, brought_ = false;
    if constexpr (separate_master) publish();
    else std::swap_ranges(average_.view().begin(), average_.view().end(), model_.block().begin());
  }

 private:
  void check_options() const {
    const auto& o = options_;
    MOESKIP_CHECK(config_error, o.steps >= 1, "training.steps must be at least 1");
    MOESKIP_CHECK(config_error, o.accumulate >= 1, "training.accumulate must be at least 1, got ", o.accumulate);
    MOESKIP_CHECK(config_error, o.clip >= 0 && std::isfinite(o.clip),
                  "training.clip must be 0 (no limit) or more, got ", o.clip);
    MOESKIP_CHECK(config_error, o.exit_scale >= 0 && o.exit_scale <= 1, "training.exit_scale must be in [0, 1], got ",
                  o.exit_scale);
    MOESKIP_CHECK(config_error, o.distill >= 0 && o.distill <= 1, "training.distill must be in [0, 1], got ",
                  o.distill);
    MOESKIP_CHECK(config_error, !name_of(o.exit_weighting).empty(),
                  "training.exit_weighting must be one of exit_weight_rule, got ", int(o.exit_weighting));
    const std::string_view of_schedule = detail::policy_problem(o.schedule);
    MOESKIP_CHECK(config_error, of_schedule.empty(), "training.schedule.", of_schedule);
    MOESKIP_CHECK(config_error, o.ema >= 0 && o.ema < 1, "training.ema must be in [0, 1), got ", o.ema);
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
      for (index_t i = 0; t.kind == tensor_kind::selection_bias && i < t.size; ++i)
        load_errors_[at++] = std::exchange(gradients_[t.offset + i], T{});
    return {load_errors_.data(), at};
  }
  /// b −= rate · sign(load − mean load): Wang et al. 2024, arXiv:2408.15664, algorithm 1.
  void move_selection_biases(vec<const T> errors) {
    const auto rate = static_cast<real_t<T>>(router::bias_rate(model_.configuration().router, progress()));
    index_t at = 0;
    for (const tensor_info& t : model_.tensors())
      for (index_t i = 0; t.kind == tensor_kind::selection_bias && i < t.size; ++i, ++at)
        if (const auto error = real_part(errors[at]); error != 0) master()[t.offset + i] -= T(error > 0 ? rate : -rate);
  }
  static index_t selection_biases(const model<V, B>& m) {
    index_t count = 0;
    for (const tensor_info& t : m.tensors()) count += t.kind == tensor_kind::selection_bias ? t.size : 0;
    return count;
  }
  /// Tensors; those that the optimizer takes together are one, with what pads them: zeros, whose gradients are zero.
  std::vector<tensor_info> updated_at_a_time() const {
    std::vector<tensor_info> all;
    const tensor_info* before = nullptr;
    const auto joins = [&](const tensor_info& t) {
      if constexpr (TakesTogether<typename O::template on<B>>)
        return before && state_.together(options_.optimizer, *before, t);
      else return false;
    };
    for (const tensor_info& t : model_.tensors()) {
      const bool updated = t.kind != tensor_kind::selection_bias;
      if (updated && joins(t)) all.back().size = t.offset + t.size - all.back().offset, all.back().shape.clear();
      else if (updated) all.push_back(t);
      before = updated ? &t : nullptr;
    }
    return all;
  }
  /// What the host has written: a step reads and writes all of it.
  void bring_all() {
    B& b = model_.backend();
    bring(b, model_.block()), bring(b, gradients_.view()), bring(b, master_.view()), bring(b, average_.view());
    state_.blocks([&](std::string_view, const auto&, auto& block) { bring(b, block.view()); });
  }
  void publish() {
    if constexpr (separate_master)
      store_weights(model_.backend(), model_.block(), shows_average_ ? average_.view() : master_.view());
    settle(model_.backend());
  }
  static void add(training_losses<T>& sum, const training_losses<T>& losses, double share) {
    const T part = T(real_t<T>(share));
    sum.total += part * losses.total, sum.balance += part * losses.balance, sum.z += part * losses.z;
    sum.change += part * losses.change, sum.open_gates += part * losses.open_gates;
    for (std::size_t e = 0; e < sum.exits.size(); ++e)
      sum.exits[e] += part * losses.exits[e], sum.divergence[e] += part * losses.divergence[e];
  }

  model<V, B>& model_;
  training<V, O, S> options_;
  buffer<T> gradients_;
  model_weights<V, T> grads_;
  typename O::template on<B> state_;
  std::vector<tensor_info> updates_;
  buffer<T> master_, average_;
  buffer<T> load_errors_;
  bool brought_ = false;  // all of this, to where the backend works
  bool shows_average_ = false;
  arena memory_;
  std::uint64_t step_ = 0;
};

/// While it lives, the model holds the averaged weights of its trainer, to be evaluated or saved.
template <class Trainer> class [[nodiscard]] averaged_weights {
 public:
  /// Throws config_error where training.ema is 0.
  explicit averaged_weights(Trainer& run) : run_(run) { run.show_average(true); }
  averaged_weights(const averaged_weights&) = delete;
  ~averaged_weights() { run_.show_average(false); }

 private:
  Trainer& run_;
};

}  // namespace moeskip
