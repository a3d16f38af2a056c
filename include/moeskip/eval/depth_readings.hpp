// What every exit of a model makes of every token of some texts, with how surprised it was: what depth is judged by.
#pragma once

#include <cmath>
#include <numbers>
#include <span>
#include <utility>
#include <vector>

#include "moeskip/decode/exit_rule/max_probability.hpp"
#include "moeskip/eval/exit_readings.hpp"

namespace moeskip {

/// exit_readings of several texts, one behind the other.
struct depth_readings : exit_readings {
  std::vector<double> bits{};  // (N, E): − log2 of the probability that the exit gives to the next token

  std::size_t tokens() const { return targets.size(); }
  void append(const exit_readings& r, std::span<const double> surprise) {
    targets.insert(targets.end(), r.targets.begin(), r.targets.end());
    confidence.insert(confidence.end(), r.confidence.begin(), r.confidence.end());
    predicted.insert(predicted.end(), r.predicted.begin(), r.predicted.end());
    bits.insert(bits.end(), surprise.begin(), surprise.end());
  }
};

namespace detail {

/// A rule that notes each exit's surprise on the way (read_exits shows it every token at every exit).
template <class Rule> struct with_surprise {
  static constexpr bool reads_logits = true, reads_streams = Rule::reads_streams;
  const Rule& rule;
  std::span<const int> text, exits;
  std::vector<double>* bits;  // (N, E)

  template <class T> double confidence(const exit_evidence<T>& seen) const {
    std::size_t e = 0;
    while (exits[e] != seen.exit_layer) ++e;
    const std::size_t n = std::size_t(seen.position);
    const T best = seen.logits[argmax(seen.logits)], said = seen.logits[text[n + 1]];
    const double nats = std::log(exit_rule::softmax_sum<T>(seen.logits, best)) + double(best - said);
    (*bits)[n * exits.size() + e] = nats / std::numbers::ln2;
    return rule.template confidence<T>(seen);
  }
};

}  // namespace detail

/// Reads texts at these exits, the full depth last, each text in one pass. Throws config_error for a text that cannot
/// be read in one pass.
template <ThresholdRule Rule = exit_rule::max_probability, class V, class B>
depth_readings read_depth_at(model<V, B>& m, std::vector<int> exits, std::span<const std::vector<int>> texts,
                             const Rule& rule = {}) {
  expect_texts("read_depth", m, texts);
  depth_readings all;
  exit_readings one;
  all.exits = one.exits = std::move(exits);
  std::vector<double> bits;
  arena memory;
  no_tape watch(memory);
  for (const std::vector<int>& text : texts) {
    bits.resize((text.size() - 1) * one.exits.size());
    read_exits(m, detail::with_surprise<Rule>{rule, text, one.exits, &bits}, text, one, watch);
    all.append(one, bits);
  }
  return all;
}

/// At all exits. Throws config_error for a model without exits below its full depth, and as read_depth_at.
template <ThresholdRule Rule = exit_rule::max_probability, class V, class B>
depth_readings read_depth(model<V, B>& m, std::span<const std::vector<int>> texts, const Rule& rule = {}) {
  return read_depth_at(m, exits_of("read_depth", m), texts, rule);
}

}  // namespace moeskip
