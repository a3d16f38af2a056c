// What every exit of a model makes of a text, read in one pass: so many thresholds can be tried on it at no cost.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "moeskip/concepts/exit_rule.hpp"
#include "moeskip/decode/sampler.hpp"
#include "moeskip/memory/kv_cache.hpp"
#include "moeskip/model/model.hpp"
#include "moeskip/train/loss.hpp"

namespace moeskip {

/// What became of the tokens of a text at every exit, the full depth last.
struct exit_readings {
  std::vector<int> exits{};          // (E)
  std::vector<double> confidence{};  // (N, E); of the full depth unused
  std::vector<int> predicted{};      // (N, E)
  std::vector<int> targets{};        // (N)

  /// Where token n leaves at this threshold: an index into exits.
  std::size_t exit_of(std::size_t n, float threshold) const {
    const std::size_t E = exits.size();
    std::size_t e = 0;
    while (e + 1 < E && !(confidence[n * E + e] >= double(threshold))) ++e;
    return e;
  }
};

/// All exits of a model, the full depth last. Throws config_error where there is no other.
template <class V, class B> std::vector<int> exits_of(std::string_view who, const model<V, B>& m) {
  std::vector<int> exits;
  for (int e = 1; e <= m.layers(); ++e)
    if (e == m.layers() || m.configuration().exits.contains(e)) exits.push_back(e);
  MOESKIP_CHECK(config_error, exits.size() > 1, who, ": this model has no exits below its full depth of ", m.layers(),
                " layers: expected some in config.exits");
  return exits;
}

/// Throws config_error for a text that the model cannot read in one pass.
template <class V, class B>
void expect_texts(std::string_view who, const model<V, B>& m, std::span<const std::vector<int>> texts) {
  for (std::size_t i = 0; i < texts.size(); ++i) {
    MOESKIP_CHECK(config_error, texts[i].size() >= 2 && int(texts[i].size()) <= m.sizes().context + 1, who, ": texts[",
                  i, "]: expected from 2 to ", m.sizes().context + 1, " tokens, got ", texts[i].size());
    for (const int token : texts[i])
      MOESKIP_CHECK(config_error, token >= 0 && token < m.sizes().vocab, who, ": texts[", i, "]: token id ", token,
                    " is outside the vocabulary of ", m.sizes().vocab);
  }
}

/// One pass over a text: every layer sees the true keys and values of all tokens before. The rule is shown every exit,
/// the full depth too. `watch`, a tape of inference, may
/// look on.
template <class V, class B, class Rule, class Tape>
void read_exits(model<V, B>& m, const Rule& rule, std::span<const int> text, exit_readings& out, Tape& watch) {
  using T = scalar_t<B>;
  constexpr index_t rows_at_once = 16;  // logits of a whole text may be large
  arena& memory = watch.memory();
  const auto scope = memory.scope();
  const sizes& s = m.sizes();
  const index_t N = index_t(text.size()) - 1, E = index_t(out.exits.size());
  out.targets.assign(text.begin() + 1, text.end());
  out.confidence.resize(std::size_t(N * E)), out.predicted.resize(std::size_t(N * E));
  kv_on_arena<T> kv(memory, 1, int(N), s.kv_groups() * s.head_size());
  token_rows rows = batch_rows(1, int(N), memory.of_host());
  rows.token = {text.data(), N};
  mat<T> x = memory.take<T>(N, s.dim), before = memory.take<T>(Rule::reads_streams ? N : 0, s.dim);
  mat<T> logits = memory.take<T>(rows_at_once, s.vocab), normed = memory.take<T>(rows_at_once, s.dim);
  m.embed(x, rows.token);
  for (index_t e = 0; e < E; ++e) {
    const int from = e ? out.exits[std::size_t(e) - 1] : 0, exit = out.exits[std::size_t(e)];
    if (Rule::reads_streams) std::copy(x.begin(), x.end(), before.begin());
    x = m.run_layers(from, exit, x, kv, rows, watch);
    for (index_t n = 0; n < N; ++n) {
      const index_t row = n % rows_at_once, count = std::min(rows_at_once, N - n);
      if (row == 0) m.head(logits.rows(0, count), normed.rows(0, count), x.rows(n, count), exit);
      exit_evidence<T> seen{.stream = x.row(n), .exit_layer = exit, .position = int(n)};
      if (Rule::reads_logits) seen.logits = logits.row(row);
      if (Rule::reads_streams && e > 0) seen.previous_stream = before.row(n);
      out.predicted[std::size_t(n * E + e)] = argmax<T>(logits.row(row));
      out.confidence[std::size_t(n * E + e)] = rule.template confidence<T>(seen);
    }
  }
}

}  // namespace moeskip
