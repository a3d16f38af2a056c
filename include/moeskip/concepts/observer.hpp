// Observer: what looks on while a model infers, as the tape that run_layers takes. no_tape (memory/tape.hpp) is the one
// that sees nothing; others derive from it and hide the functions whose news they want:
//   enter(backend, stage)            a stage of the work begins; it lasts until the next one
//   foreseen(layer, routing, rows)   what rows would choose there if they came to its experts as they come to the layer
//                                    before, which now begins; for who asks ahead so far, or foretells()
//   routed(layer, routing, rows)     what the rows of a MoE layer chose; on a backend that runs late all layers' when the
//                                    call ends, but for those who are told what is foreseen, limit or ask
//   entered(layer, rows)             rows that a gate let into its layer
//   passed(layer, rows)              rows that did not run a layer
// and may take part:
//   living(layer, count)             the experts that may be chosen, of `count`
//   most_experts()                   how many of its chosen ones a token visits
//   asks()                           which weights are asked for ahead
//   foretells()                      whether choices are foreseen though nothing is asked for
// Calls are resolved at compile time and those of no_tape are empty: an observer that is not there is no instruction,
// and no wait for a device. One that wants times settles the backend itself.
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <string_view>

#include "moeskip/base/bit_set.hpp"
#include "moeskip/concepts/backend.hpp"
#include "moeskip/tensor/routing.hpp"
#include "moeskip/tensor/rows.hpp"

namespace moeskip {

/// Where a token's time and bytes go; on a GPU, of up to 16 rows, the output projection's time to the router.
enum class stage {
  attention,   // with its norm, projections, keys and values
  router,      // with its norm, the choice, and the sorting by expert
  expert,      // chosen and shared ones
  dense,       // the MLP of a layer, or beside its experts, with its norm
  layer_gate,  // of layers that may be passed by, and the keys and values of tokens that do
  missing_kv,  // keys and values of layers above an early exit
  head,        // norm and unembedding, of any exit
};
inline constexpr std::array<std::string_view, 7> stage_names{"attention",  "router",     "experts", "dense",
                                                             "layer gate", "missing kv", "head"};

/// Which weights are asked for before they are touched: none; those of chosen experts, as soon as a layer has chosen;
/// and, while that layer runs, those that the next one would choose for what came to it, which is mostly what it does
/// choose.
///                                                   "speculative expert loading", Eliseev and Mazur, arXiv:2312.17238
enum class ask_ahead { nothing, chosen, foreseen };

template <class P, class B>
concept Observer = requires(P& p, B& b, int layer, const routing<scalar_t<B>>& r, const token_rows& rows) {
  p.enter(b, stage::attention);
  p.foreseen(layer, r, rows);
  p.routed(layer, r, rows);
  p.entered(layer, rows);
  p.passed(layer, rows);
  { p.living(layer, int{}) } -> std::same_as<expert_set>;
  { p.most_experts() } -> std::convertible_to<int>;
  { p.asks() } -> std::convertible_to<ask_ahead>;
  { p.foretells() } -> std::convertible_to<bool>;
  p.memory();
  p.layer_scope();
  p.lasting();
  p.alive();
  p.late();
};

}  // namespace moeskip
