// The exit threshold with a guarantee: with probability 1 − δ over the texts drawn for calibration, the expected loss
// of exits chosen by it is at most the tolerance. Candidates fall along a grid, the most cautious first; they are
// tested by Learn then Test (eval/learn_then_test.hpp), as CALM does (arXiv:2207.07061).
//   loss of a text   consistency   share of its tokens where the exit's argmax is not the full depth's
//                    risk          max(0, share of tokens that the exit predicts wrongly − the same of the full depth)
#pragma once

#include <algorithm>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "moeskip/decode/exit_rule/max_probability.hpp"
#include "moeskip/eval/exit_readings.hpp"
#include "moeskip/eval/learn_then_test.hpp"
#include "moeskip/model/metadata.hpp"

namespace moeskip {

enum class calibration_loss { consistency, risk };

constexpr std::string_view describe(calibration_loss loss) {
  return loss == calibration_loss::consistency ? "consistency" : "risk";
}

struct calibration_options {
  double tolerance = 0.1;    // of the expected loss
  double confidence = 0.95;  // 1 − δ
  calibration_loss loss = calibration_loss::consistency;
  std::vector<float> grid{};  // falling thresholds, chosen without a look at the texts; empty: 1, 0.98 … 0.02
};

/// What was calibrated, and how.
struct calibration {
  static constexpr float never = 2;  // a threshold that no token reaches
  std::string rule{}, loss{};        // their names
  float threshold = never;           // the lowest that passed; `never` where none did
  double tolerance = 0, confidence = 0;
  int texts = 0;
  double mean_loss = 0, layers_per_token = 0;  // at this threshold, of the texts that it was chosen on

  /// The rule with this threshold. Throws config_error where another one was calibrated.
  template <ThresholdRule Rule = exit_rule::max_probability> Rule as(Rule calibrated = {}) const {
    MOESKIP_CHECK(config_error, rule == Rule::name, "exit calibration: rule: expected ", Rule::name, ", got ", rule);
    calibrated.threshold = threshold;
    return calibrated;
  }

  template <class Self, class F> static constexpr void fields(Self& self, F&& f) {
    f("rule", self.rule), f("loss", self.loss), f("threshold", self.threshold), f("tolerance", self.tolerance);
    f("confidence", self.confidence), f("texts", self.texts), f("mean_loss", self.mean_loss);
    f("layers_per_token", self.layers_per_token);
  }
  friend bool operator==(const calibration&, const calibration&) = default;
};

namespace detail {

/// The loss of a text whose tokens leave by this threshold, and the layers that they run.
inline double text_loss(const exit_readings& r, float threshold, calibration_loss loss, double& layers) {
  const std::size_t N = r.targets.size(), E = r.exits.size();
  int differ = 0, wrong = 0, wrong_anyway = 0;
  for (std::size_t n = 0; n < N; ++n) {
    const std::size_t e = r.exit_of(n, threshold);
    const int here = r.predicted[n * E + e], there = r.predicted[n * E + E - 1];
    differ += here != there, wrong += here != r.targets[n], wrong_anyway += there != r.targets[n];
    layers += r.exits[e];
  }
  return double(loss == calibration_loss::consistency ? differ : std::max(0, wrong - wrong_anyway)) / double(N);
}

}  // namespace detail

/// The lowest threshold of the grid whose expected loss is at most the tolerance, with the wanted confidence.
///
/// One sample is one text, and its loss the average over its tokens. Texts must be exchangeable with those that will be
/// generated on: drawn alike, and independently of each other. Tokens of one text are not, nor are windows of one
/// document, so they count once however many there are: cut a document into one text, not into many.
/// Exits are decided along the text, where every token sees true keys and values: the guarantee speaks of exits
/// as missing_kv::recompute decides them, along texts like these. A text that early exits wrote is drawn otherwise, and
/// what propagate and copy do to later tokens is not in the loss.
///
/// Only thresholds are chosen by the texts: choosing rule or options by them, too, or calibrating until it pleases,
/// voids the guarantee. Throws config_error for options that mean nothing, a text that does not fit the model, and
/// fewer texts than could ever pass.
template <ThresholdRule Rule = exit_rule::max_probability, class V, class B>
calibration calibrate(model<V, B>& m, std::span<const std::vector<int>> texts, const calibration_options& o = {},
                      const Rule& rule = {}) {
  MOESKIP_CHECK(config_error, o.tolerance > 0 && o.tolerance < 1,
                "calibration_options.tolerance must be between 0 and 1, got ", o.tolerance);
  MOESKIP_CHECK(config_error, o.confidence > 0 && o.confidence < 1,
                "calibration_options.confidence must be between 0 and 1, got ", o.confidence);
  const double level = 1 - o.confidence, least = std::ceil(std::log(level) / std::log1p(-o.tolerance));
  MOESKIP_CHECK(config_error, double(texts.size()) >= least, "calibrate: expected at least ", least,
                " texts, since fewer prove nothing at tolerance ", o.tolerance, " and confidence ", o.confidence,
                ", got ", texts.size());
  expect_texts("calibrate", m, texts);
  std::vector<float> grid = o.grid;
  for (int i = 50; o.grid.empty() && i >= 1; --i) grid.push_back(float(i) / 50);
  for (std::size_t i = 0; i < grid.size(); ++i) {
    exit_rule::check_threshold("calibration_options.grid: one", grid[i]);
    MOESKIP_CHECK(config_error, i == 0 || grid[i] < grid[i - 1],
                  "calibration_options.grid must fall from the most cautious threshold on, got ", grid[i], " after ",
                  grid[i - (i > 0)]);
  }
  exit_readings readings;
  readings.exits = exits_of("calibrate", m);
  if constexpr (requires { rule.check(layer_set{}, int{}); }) {
    Rule allowed = rule;
    allowed.threshold = calibration::never;  // the one to be found, not the one it came with
    allowed.check(m.configuration().exits, m.layers());
  }

  arena memory;
  no_tape watch(memory);
  std::vector<double> total(grid.size()), layers(grid.size()), p_values(grid.size());
  double tokens = 0;
  for (const std::vector<int>& text : texts) {
    read_exits(m, rule, text, readings, watch);
    for (std::size_t g = 0; g < grid.size(); ++g) total[g] += detail::text_loss(readings, grid[g], o.loss, layers[g]);
    tokens += double(readings.targets.size());
  }
  const auto n = static_cast<long long>(texts.size());
  for (std::size_t g = 0; g < grid.size(); ++g) p_values[g] = hoeffding_bentkus_p(total[g], n, o.tolerance);
  calibration out{.rule = std::string(Rule::name),
                  .loss = std::string(describe(o.loss)),
                  .tolerance = o.tolerance,
                  .confidence = o.confidence,
                  .texts = int(n),
                  .layers_per_token = double(m.layers())};
  if (const int passed = fixed_sequence(p_values, level); passed > 0) {
    const std::size_t chosen = std::size_t(passed) - 1;
    out.threshold = grid[chosen], out.mean_loss = total[chosen] / double(n);
    out.layers_per_token = layers[chosen] / tokens;
  }
  return out;
}

/// For a checkpoint: save(model, path, to_metadata(calibrated)).
inline string_map to_metadata(const calibration& c) {
  string_map map;
  c.fields(c, [&](std::string_view field, const auto& value) {
    map[text("exit_calibration.", field)] = detail::to_text(value);
  });
  return map;
}

/// That of a checkpoint: calibration_from(read_metadata(path), path). Throws file_error where there is none.
inline calibration calibration_from(const string_map& map, const std::string& path) {
  calibration c;
  c.fields(c, [&](std::string_view field, auto& value) {
    const std::string key = text("exit_calibration.", field);
    const auto found = map.find(key);
    MOESKIP_CHECK(file_error, found != map.end(), path, ": no exit calibration: expected metadata ", key,
                  ", got nothing: save the model with to_metadata(ms::calibrate(…))");
    MOESKIP_CHECK(file_error, detail::parse(found->second, value), path, ": metadata: ", key,
                  ": expected a value, got '", found->second, "'");
  });
  return c;
}

}  // namespace moeskip
