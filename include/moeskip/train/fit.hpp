// fit(trainer, data, options): the whole of a training run. Steps until the planned ones are done; metrics in a file;
// validation and checkpoints at intervals; Ctrl-C saves and stops; a run whose checkpoint exists goes on from there.
// Opt-in: brings nlohmann-json.
#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "moeskip/train/interrupt.hpp"
#include "moeskip/train/metrics.hpp"
#include "moeskip/train/resume.hpp"

namespace moeskip {

/// What fit() tells its caller after each step.
struct fit_progress {
  std::uint64_t step, steps;  // done, planned
  std::uint64_t tokens;       // since the run began, resumed parts included
  double seconds;             // likewise
  double tokens_per_second;   // in training steps, since the last line of metrics
  step_report<double> report;
  const std::vector<exit_quality>& validation;  // the latest; empty before the first
};

struct fit_options {
  std::filesystem::path metrics{};     // JSON lines; empty: none
  std::filesystem::path checkpoint{};  // of the run; if it exists, the run goes on from it; empty: none
  std::uint64_t log_every = 1;         // steps
  std::uint64_t validate_every = 0;    // steps; 0: only at the end
  std::uint64_t checkpoint_every = 0;  // steps; 0: only at the end and when stopped
  bool interruptible = true;           // the first Ctrl-C saves and stops
  string_map about{};                  // what else must be the same when the run is resumed
  std::function<std::vector<exit_quality>()> validate{};  // see eval/validation.hpp
  std::function<void(const fit_progress&)> progress{};
};

struct fit_result {
  bool interrupted = false;
  std::uint64_t steps = 0, tokens = 0;  // done since the run began
  double seconds = 0;
  std::vector<exit_quality> validation{};  // the latest
};

namespace detail {

inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

inline void check(const fit_options& o) {
  MOESKIP_CHECK(config_error, o.log_every >= 1, "fit.log_every must be at least 1, got ", o.log_every);
  MOESKIP_CHECK(config_error, o.validate_every == 0 || o.validate, "fit.validate_every is ", o.validate_every,
                ", but fit.validate is empty");
  MOESKIP_CHECK(config_error, o.checkpoint_every == 0 || !o.checkpoint.empty(), "fit.checkpoint_every is ",
                o.checkpoint_every, ", but fit.checkpoint names no file");
}

template <class T> step_report<double> in_double(const step_report<T>& r) {
  step_report<double> out{{}, r.gradient_norm, r.rate};
  out.losses.total = double(r.losses.total), out.losses.balance = double(r.losses.balance);
  out.losses.z = double(r.losses.z), out.losses.change = double(r.losses.change);
  out.losses.open_gates = double(r.losses.open_gates);
  std::copy(r.losses.exits.begin(), r.losses.exits.end(), out.losses.exits.begin());
  std::copy(r.losses.divergence.begin(), r.losses.divergence.end(), out.losses.divergence.begin());
  return out;
}

/// One run of fit().
template <class Trainer, class Data> class fitting {
 public:
  fitting(Trainer& run, Data& data, const fit_options& options) : run_(run), data_(data), options_(options) {
    check(options);
    run_options<typename Trainer::backend_type>(run.options());  // a policy that cannot be saved is refused at once
    to_metadata(run.trained().configuration());
    if constexpr (requires { data.about(); }) options_.about.merge(data.about());
    if (run.next_step() == 0 && !options.checkpoint.empty() && std::filesystem::exists(options.checkpoint))
      resume(run, options.checkpoint, options_.about);
    if constexpr (requires { data.tokens_per_batch(); })
      tokens_ = run.next_step() * std::uint64_t(run.options().accumulate) * std::uint64_t(data.tokens_per_batch());
    if (options.metrics.empty()) return;
    metrics_.emplace(options.metrics, run.next_step());
    if (const nlohmann::json& last = metrics_->last(); !last.is_null())
      tokens_ = last.value("tokens", tokens_), earlier_seconds_ = last.value("seconds", 0.0);
  }

  fit_result go() {
    const std::optional<interrupt_guard> guard = make_guard();
    const std::uint64_t planned = run_.options().steps, first = run_.next_step();
    bool interrupted = false;
    try {
      while (run_.next_step() < planned && !interrupted) {
        one_step();
        const std::uint64_t step = run_.next_step();
        interrupted = guard && guard->raised();
        if (step == planned || interrupted || due(options_.checkpoint_every)) save_run();
        if (options_.validate && (step == planned || due(options_.validate_every))) validate();
      }
    } catch (...) {  // whatever went wrong must not cost the run: what can be saved is
      try {
        if (run_.next_step() > first) save_run();
      } catch (const error&) {}
      throw;
    }
    return {interrupted && run_.next_step() < planned, run_.next_step(), tokens_, seconds(), validation_};
  }

 private:
  std::optional<interrupt_guard> make_guard() const {
    if (!options_.interruptible) return std::nullopt;
    return std::optional<interrupt_guard>(std::in_place);
  }
  bool due(std::uint64_t every) const { return every > 0 && run_.next_step() % every == 0; }
  double seconds() const { return earlier_seconds_ + seconds_since(start_); }

  batch next_batch(std::uint64_t step, std::uint64_t micro) {
    const batch b = [&] {
      if constexpr (requires { data_.at(step, micro); }) return data_.at(step, micro);
      else return data_(step, micro);
    }();
    tokens_ += std::uint64_t(b.inputs.size()), recent_tokens_ += double(b.inputs.size());
    return b;
  }

  void one_step() {
    const exit_weights weights = run_.exit_weights_now();
    const std::uint64_t tokens_before = tokens_;
    const auto start = std::chrono::steady_clock::now();
    step_report<double> report;
    try {
      report = in_double(run_.step([&](std::uint64_t s, std::uint64_t micro) { return next_batch(s, micro); }));
    } catch (...) {
      tokens_ = tokens_before;
      throw;
    }
    recent_seconds_ += seconds_since(start);
    const fit_progress now{run_.next_step(), run_.options().steps, tokens_, seconds(), rate(), report, validation_};
    if (metrics_ && (due(options_.log_every) || now.step == now.steps)) {
      metrics_->append(line(now, weights));
      recent_tokens_ = recent_seconds_ = 0;
    }
    if (options_.progress) options_.progress(now);
  }
  double rate() const { return recent_seconds_ > 0 ? recent_tokens_ / recent_seconds_ : 0; }

  std::string line(const fit_progress& now, const exit_weights& weights) const {
    const training_losses<double>& losses = now.report.losses;
    json_line out;
    out.number("step", now.step).number("tokens", now.tokens).number("loss", losses.total).open("exits");
    for (int e = 1; e <= run_.trained().layers(); ++e)
      if (weights[std::size_t(e)] > 0) out.number(text(e), losses.exits[std::size_t(e)]);
    out.close();
    if (run_.options().distill > 0) {
      out.open("divergence");
      for (int e = 1; e < run_.trained().layers(); ++e)
        if (weights[std::size_t(e)] > 0) out.number(text(e), losses.divergence[std::size_t(e)]);
      out.close();
    }
    out.number("balance", losses.balance).number("z", losses.z);
    if (router::change_weight(run_.trained().configuration().router) > 0) out.number("change", losses.change);
    if constexpr (std::decay_t<decltype(run_.trained())>::variant_type::layer_skip::has_gates)
      out.number("open_gates", losses.open_gates);
    out.number("rate", now.report.rate);
    out.number("gradient_norm", now.report.gradient_norm).number("tokens_per_second", now.tokens_per_second);
    return out.number("seconds", now.seconds).done();
  }

  void validate() {
    validation_ = options_.validate();
    if (!metrics_) return;
    json_line out;
    out.number("step", run_.next_step()).number("tokens", tokens_).open("validation");
    for (const exit_quality& q : validation_) out.number(text(q.exit_layer), q.bits_per_token);
    metrics_->append(out.close().number("seconds", seconds()).done());
  }

  void save_run() {
    if (!options_.checkpoint.empty()) save(run_, options_.checkpoint, options_.about);
  }

  Trainer& run_;
  Data& data_;
  fit_options options_;
  std::optional<metrics_file> metrics_;
  std::vector<exit_quality> validation_;
  std::uint64_t tokens_ = 0;
  double earlier_seconds_ = 0, recent_tokens_ = 0, recent_seconds_ = 0;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace detail

/// Trains until the planned steps are done or Ctrl-C. data: random_windows, or data(step, micro) that returns a batch.
/// A new trainer goes on from options.checkpoint where that exists; one that has done steps already goes on from where
/// it is. Lines of metrics: "step", "tokens", "loss", "exits" (loss of each trained exit, nats), "divergence" (where
/// exits are distilled), "balance", "z", "change" (where the router weighs it), "open_gates" (where layers have some),
/// "rate", "gradient_norm", "tokens_per_second", "seconds"; and after a validation "step", "tokens", "validation" (bits
/// per token of each exit), "seconds". Throws config_error for options that mean nothing, and file_error where metrics
/// or checkpoint cannot be written. Whatever is thrown while it trains, it first tries to save the run; the trainer
/// stands after its last step, and fit() may be called again, with other files.
template <class Trainer, class Data> fit_result fit(Trainer& run, Data&& data, const fit_options& options = {}) {
  return detail::fitting<Trainer, std::remove_reference_t<Data>>(run, data, options).go();
}

}  // namespace moeskip
