// Choosing how long to train, training, and how well each exit then predicts the held-out text.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <vector>

#include "corpus.hpp"
#include "moeskip/eval/expert_observer.hpp"
#include "moeskip/eval/report/data.hpp"
#include "moeskip/train/interrupt.hpp"
#include "progress.hpp"
#include "shape.hpp"

namespace demo {

/// What one run of the demo works on.
struct task {
  shape s;
  corpus text;
  ms::seed seed;

  template <class B> ms::model<variant, B> fresh_model() const { return ms::model<variant, B>(s.model, seed); }
  ms::random_windows batches() const { return {text.training, s.sequences, s.length, seed}; }
  ms::training<variant> options(std::uint64_t steps) const {
    ms::training<variant> t = s.training;
    t.steps = steps, t.masks = seed;
    return t;
  }
};

inline constexpr int most_windows = 1024;  // of held-out text: a quarter of a megabyte

/// Bits per byte at every exit, over at most so many windows spread over the held-out text; `watch` sees the experts.
template <class B> std::vector<ms::exit_quality> validate(ms::model<variant, B>& m, const task& t,
                                                          ms::expert_observer& watch, int windows = most_windows) {
  return ms::evaluate(m, std::span<const int>(t.text.held_out), ms::window_options{t.s.length, t.s.sequences, windows},
                      watch);
}

/// The steps that, with the validation, fit into `budget` seconds. The schedule of the learning rate must
/// know them before the first step, so ten steps are timed on a model that is then thrown away.
template <class B> std::uint64_t steps_within(double budget, const task& t) {
  const clock::time_point start = clock::now();
  const auto elapsed = [&] { return seconds(clock::now() - start).count(); };
  auto m = t.fresh_model<B>();
  ms::random_windows data = t.batches();
  ms::trainer trial(m, t.options(11));
  trial.step(data);                                                    // the first step allocates
  const int timed = std::clamp(int(0.1 * budget / elapsed()), 1, 10);  // fewer than ten on a very slow machine
  double before = elapsed();
  for (int i = 0; i < timed; ++i) trial.step(data);
  const double step = (elapsed() - before) / timed;

  ms::arena memory;
  ms::expert_observer watch(memory, m.sizes().vocab);
  validate(m, t, watch, t.s.sequences);  // allocates
  before = elapsed();
  validate(m, t, watch, t.s.sequences);
  const double batches =
      std::min(double(most_windows), double(t.text.held_out.size() / std::size_t(t.s.length))) / t.s.sequences;
  const double validation = (elapsed() - before) * std::ceil(batches);
  return std::uint64_t(std::max(1.0, (0.97 * budget - elapsed() - validation) / step));  // 3 % for saving and noise
}

struct training_outcome {
  std::uint64_t steps = 0;
  double seconds = 0, first_loss = 0, last_loss = 0;  // of the full depth, nats per byte
  int tokens_per_step = 0;
  ms::report::training_curves curves{};
  double tokens_per_second() const { return double(steps) * tokens_per_step / seconds; }
};

/// The loss of every exit over the run, in bits per byte: means of some steps each, at most 300 points.
class curve_recorder {
 public:
  curve_recorder(std::uint64_t steps, int layers, int tokens_per_step)
      : every_((steps + 299) / 300), layers_(layers), tokens_per_step_(tokens_per_step) {}

  template <class T>
  void add(std::uint64_t done, const ms::training_losses<T>& losses, ms::report::training_curves& to) {
    for (std::size_t e = 1; e <= std::size_t(layers_); ++e)  // exits take turns
      if (losses.exits[e] > 0) sum_[e] += double(losses.exits[e]) / std::numbers::ln2, ++count_[e];
    if (done % every_) return;
    for (std::size_t e = 1; e <= std::size_t(layers_); ++e)
      if (count_[e]) to.training[int(e)].push_back({double(done) * tokens_per_step_, sum_[e] / count_[e]});
    sum_ = {}, count_ = {};
  }

 private:
  std::uint64_t every_;
  int layers_, tokens_per_step_;
  std::array<double, std::size_t(ms::layer_set::capacity) + 1> sum_{};
  std::array<int, std::size_t(ms::layer_set::capacity) + 1> count_{};
};

/// Trains to the end, or to the end of the step in which somebody pressed Ctrl-C.
template <class B>
training_outcome train(ms::model<variant, B>& m, const task& t, std::uint64_t steps, const terminal& out) {
  ms::random_windows data = t.batches();
  ms::trainer run(m, t.options(steps));
  training_outcome result{.tokens_per_step = data.tokens_per_batch()};
  curve_recorder curves(steps, m.layers(), result.tokens_per_step);
  progress shown(out, steps, m.layers(), data.tokens_per_batch());
  const ms::interrupt_guard stop;  // the first Ctrl-C is only noted; a second one ends the program
  const clock::time_point start = clock::now();
  while (!stop.raised() && run.next_step() < steps) {
    const auto report = run.step(data);
    result.steps = run.next_step();
    result.last_loss = double(report.losses.exits[std::size_t(m.layers())]);
    if (result.steps == 1) result.first_loss = result.last_loss;
    MOESKIP_CHECK(ms::error, std::isfinite(result.last_loss), "training diverged: the loss of step ", result.steps,
                  " is ", result.last_loss);
    curves.add(result.steps, report.losses, result.curves);
    shown.show(result.steps, report.losses, stop.raised() || result.steps == steps);
  }
  result.seconds = demo::seconds(clock::now() - start).count();
  if (result.steps < steps)
    out.print(
        ms::text("  stopped by Ctrl-C after step ", result.steps, " of ", steps, "; going on with what was learned\n"));
  return result;
}

}  // namespace demo
