// Watches the routing of inference passes as routing_observer does, and counts besides which experts meet in a token,
// which ids they see, and how well they are foretold, and keeps the choices of the first tokens.
#pragma once

#include <array>
#include <vector>

#include "moeskip/eval/choice_overlap.hpp"
#include "moeskip/eval/expert_pairs.hpp"
#include "moeskip/eval/routing.hpp"
#include "moeskip/eval/token_experts.hpp"

namespace moeskip {

/// What a MoE layer's tokens chose.
struct expert_counts {
  int layer = 0;
  expert_pairs within;  // (E, E) both in this layer; of the diagonal, an expert with itself
  expert_pairs before;  // (E', E) one in the MoE layer before, the other in this one; of the first layer empty
  std::vector<int> first_tokens{}, first_choices{};  // (n), (n, K) of the first n = expert_observer::traced rows
  std::vector<int> choices{};                        // (N, K) of all rows, where they are kept
  token_experts ids[2]{};  // of sequences with even and with odd slots: one half predicts the other
  // Of the choices, those that the router would have made of what entered the layer before: what asking ahead rests on
  // (ask_ahead::foreseen). Empty in the first layer, and where a router follows the token before.
  choice_overlap foretold{};
};

/// A tape for run_layers. Passes must run the layers of a call in order, all with the same rows, as evaluate() does.
class expert_observer : public routing_observer {
 public:
  static constexpr std::size_t traced = 72;  // tokens whose choices are kept

  /// keep_choices: of all tokens, four bytes for each: to compare checkpoints (eval/saturation.hpp).
  expert_observer(arena& memory, int vocab, bool keep_choices = false)
      : routing_observer(memory), vocab_(vocab), keep_choices_(keep_choices) {}

  static constexpr bool foretells() { return true; }
  template <class T> void foreseen(int layer, const routing<T>& r, const token_rows&) {
    foreseen_[layer % 2].assign(r.chosen.begin(), r.chosen.end());
  }
  template <class T> void routed(int layer, const routing<T>& r, const token_rows& rows) {
    routing_observer::routed(layer, r, rows);
    const int E = int(r.probability.cols()), K = int(r.chosen.cols());
    if (layer >= int(counts_.size())) counts_.resize(std::size_t(layer) + 1);
    expert_counts& c = counts_[std::size_t(layer)];
    const bool has_before = last_layer_ >= 0 && last_layer_ < layer && last_rows_ == rows.size();
    if (!c.within.rows()) {
      c.layer = layer, c.within = {E, E};
      for (token_experts& half : c.ids) half = {vocab_, E, K};
    }
    if (has_before && !c.before.rows()) c.before = {counts_[std::size_t(last_layer_)].within.cols(), E};
    std::vector<int>& said = foreseen_[layer % 2];
    for (index_t n = 0; n < rows.size(); ++n) {
      const vec<const int> chosen = r.chosen.row(n);
      c.within.add(chosen, chosen);
      if (has_before) c.before.add({last_.data() + n * last_cols_, last_cols_}, chosen);
      if (rows.token.size() && c.first_tokens.size() < traced) {
        c.first_tokens.push_back(rows.token[n]);
        c.first_choices.insert(c.first_choices.end(), chosen.begin(), chosen.end());
      }
      if (rows.token.size()) c.ids[rows.slot[n] % 2].add(rows.token[n], chosen);
      if (index_t(said.size()) == r.chosen.size()) c.foretold.add(chosen, {said.data() + n * K, K});
    }
    said.clear();
    if (keep_choices_) c.choices.insert(c.choices.end(), r.chosen.begin(), r.chosen.end());
    last_layer_ = layer, last_rows_ = rows.size(), last_cols_ = K;
    last_.assign(r.chosen.begin(), r.chosen.end());
  }

  /// MoE layers seen so far, in order.
  std::vector<expert_counts> counts() const {
    std::vector<expert_counts> seen;
    for (const expert_counts& c : counts_)
      if (c.within.tokens()) seen.push_back(c);
    return seen;
  }

 private:
  int vocab_, last_layer_ = -1;
  bool keep_choices_;
  index_t last_rows_ = 0, last_cols_ = 0;
  std::vector<int> last_;              // (N, K) what the rows chose in last_layer_
  std::vector<int> foreseen_[2];       // (N, K) by layer modulo 2: what they would choose there; empty: not known
  std::vector<expert_counts> counts_;  // by layer; dense ones stay empty
};

}  // namespace moeskip
