// cuda<W, Driver, Product>: every op as phases, functors that know neither who runs them nor where.
//   each(n, phase)         phase(i) for all i in [0, n), in any order: no thread needs another
//   launch(shape, phase)   phase(block) on every thread of every block: threads of a block share memory and barriers
//   gemm(call)             a dense product by a library, where has_gemm() (gemm.hpp)
// Drivers run the same phases:
//   driver::device, driver::graph   kernels on a GPU, one by one or as a CUDA graph (device.hpp, cuda.cuh)
//   driver::emulator                fibres on the host (emulator.hpp)
// Ops are asked for in order and done later: settle() waits. The family has no fallback: an op without phases is a
// compile error, never a copy to the host.
#pragma once

#include <string>
#include <vector>

#include "moeskip/backend/cuda/reach.hpp"
#include "moeskip/backend/cuda/script.hpp"
#include "moeskip/concepts/backend.hpp"
#include "moeskip/memory/arena.hpp"
#include "moeskip/tensor/routing.hpp"
#include "moeskip/tensor/rows.hpp"

namespace moeskip {

struct on_cuda {};

namespace detail {
/// Throws config_error where a script is open: who waits for the device to look at numbers cannot be part of one.
inline void expect_no_script() {
  MOESKIP_CHECK(
      config_error, !script_steps::open(),
      "a loop on the device cannot wait for the host, and a slot of this model's variant looks at numbers in the "
      "middle of a layer: gates of layers, OpenMoE's experts or a router that chooses for all rows at once");
}
/// Tensor cores make the attention of many rows for heads of up to this many numbers.
inline constexpr int most_tiled_head_dim = 128;
}  // namespace detail

template <class Driver, class List> class script;                       // backend/cuda/follow.hpp
template <class W, class Router, class ExitRule> struct script_phases;  // backend/cuda/program.hpp

/// W: how weights are stored; Product: what calls of more than 16 rows, and backward, round the factors of linear maps
/// and of attention to, but not the router's. In bf16 they are made by tensor cores. Sums are f32, and so is the rest.
template <Storage W, class Driver, Storage Product> struct cuda {
  static_assert(std::same_as<W, float> || std::same_as<W, bf16>, "moeskip: cuda<W> stores weights in float or bf16");
  static_assert(std::same_as<Product, float> || std::same_as<Product, bf16>,
                "moeskip: cuda<W, Driver, Product> multiplies in float or bf16");
  using scalar = float;
  using weight = W;
  using family = on_cuda;
  using driver = Driver;
  using product = Product;
  using widened = cuda<float, Driver, Product>;
  using unrounded = cuda<W, Driver, float>;
  static constexpr index_t logits_at_once = Driver::logits_at_once;

  /// Throws error, in one sentence, where there is no device.
  cuda() { Driver::start(); }
  static std::string name() {
    const bool rounds = !std::same_as<Product, W>;
    return text(Driver::name, "<", scalar_name<W>(), rounds ? text(", products in ", scalar_name<Product>()) : "", ">");
  }
  void settle() const { detail::expect_no_script(), Driver::settle(); }
  /// What makes dense products of calls of more than 16 rows.
  static const char* multiplies_by() { return Driver::has_gemm() ? Driver::blas : "own kernels"; }
  /// What makes attention of such calls, for heads of so many numbers.
  static const char* attends_by(int head_dim) {
    return std::same_as<Product, bf16> && head_dim <= detail::most_tiled_head_dim ? "tensor cores" : "ordinary cores";
  }
  void forget() const { Driver::forget(); }
  /// v goes to the device's own memory; what the device does not see stays where it is.
  template <class T> void bring(vec<T> v) const {
    const std::size_t bytes = std::size_t(v.size()) * sizeof(T);
    if (bytes && reached_memory::has(v.data(), bytes)) Driver::bring(v.data(), bytes);
  }
  /// What is asked for on this thread is kept, to be done later.
  static bool keeps() { return script_steps::open() != nullptr; }
  /// Loops of decoding with this router and exit rule that run on the device.
  template <class Router, class ExitRule> using loop = script<Driver, script_phases<W, Router, ExitRule>>;
};

namespace detail {

/// What a kernel of a cuda backend needs beside its arguments. Op names it in messages.
template <class Op, class B> struct device_call;
template <class Op, Storage W, class Driver, Storage Product> struct device_call<Op, cuda<W, Driver, Product>> {
  using driver = Driver;
  using product = Product;
  static constexpr bool on_tensor_cores = std::same_as<Product, bf16>;

  /// v, which must be memory that the device sees.
  template <class T, int Rank> static const view<T, Rank>& seen(const view<T, Rank>& v) {
    reached_memory::expect(Op::name, v.data(), v.data() ? std::size_t(v.size()) * sizeof(T) : 0);
    return v;
  }
  template <class X> static const expert_weights<X>& seen(const expert_weights<X>& w) {
    return seen(w.gate_up.together()), seen(w.down.together()), w;
  }
  static const dispatch& seen(const dispatch& d) {
    seen(d.first), seen(d.row), seen(d.choice), seen(d.assignment), seen(d.expert), seen(d.visited);
    return d;
  }
  static kv_layer<float> seen(const kv_layer<float>& kv) { return seen(kv.keys), seen(kv.values), kv; }

  /// A list of the host's (n), copied to where the device sees it until the next settle().
  template <class T> static vec<const T> listed(vec<const T> list) {
    const std::size_t bytes = std::size_t(list.size()) * sizeof(T);
    const void* there = nullptr;
    if (script_steps* s = script_steps::open())
      there = s->list(list.data(), bytes, reached_memory::has(list.data(), bytes));
    else there = Driver::list(list.data(), bytes);
    return {static_cast<const T*>(there), list.size()};
  }
  /// What an op may have written where it stands, or a list of the host's.
  template <class T> static vec<const T> seen_or_listed(vec<const T> v) {
    return reached_memory::has(v.data(), std::size_t(v.size()) * sizeof(T)) ? v : listed(v);
  }
  static vec<const int> listed(const std::vector<int>& list) {
    return listed(vec<const int>(list.data(), index_t(list.size())));
  }
  static token_rows listed(const token_rows& rows) {
    return {listed(rows.slot), listed(rows.position), listed(rows.token)};
  }
  /// What says something of rows, with the device's lists of them.
  template <class X> static X with_listed_rows(X of) { return of.rows = listed(of.rows), of; }

  template <class Phase> static void each(index_t n, const Phase& phase) {
    if (n == 0) return;
    if (script_steps* s = script_steps::open()) s->elements(n, phase);
    else Driver::each(n, phase);
  }
  template <class Phase> static void launch(const launch_shape& shape, const Phase& phase) {
    if (shape.blocks == 0) return;
    if (script_steps* s = script_steps::open()) s->launch(shape, phase);
    else Driver::launch(shape, phase);
  }
  static void settle() { expect_no_script(), Driver::settle(); }
  /// Temporaries of one op: what is in flight may still use them, but only ops that come later take them again.
  static arena& scratch() { return script_steps::open() ? script_steps::open()->scratch() : Driver::scratch(); }
  /// Where a script counts the experts that it visits; null: nobody asks.
  static int* visits() { return script_steps::open() ? script_steps::open()->visits : nullptr; }
  /// What a script sets for choices that are none; null: the host looks for itself.
  static int* bad_choices() { return script_steps::open() ? script_steps::open()->bad_choices : nullptr; }
  /// n zeros for blocks to count each other by (last_of), which leaves zeros behind. Ops that come later take them again.
  static int* counters(index_t n) {
    return script_steps::open() ? script_steps::open()->counters(n) : Driver::counters(n);
  }
};

/// Calls of up to this many rows give each row the bits that it has alone.
inline constexpr index_t invariant_rows = 16;

constexpr index_t ceiling(index_t n, index_t of) { return (n + of - 1) / of; }

/// A warp for each of n rows, outputs …: phases find theirs as block · warps + warp.
constexpr launch_shape warp_each(index_t n) {
  constexpr int warps = 4;
  return {ceiling(n, warps), 32 * warps, 0, n};
}

}  // namespace detail

}  // namespace moeskip
