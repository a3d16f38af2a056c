// Backends: where a model runs and how its weights are stored. A backend names
//   scalar   what activations, sums and gradients are computed in
//   weight   what weights are stored as
//   family   whose kernels it takes (ops/contract.hpp); a family may name another to fall back to
#pragma once

#include <concepts>
#include <string>

#include "moeskip/base/scalar.hpp"
#include "moeskip/fwd.hpp"

namespace moeskip {

// Families of kernels, in order of fallback: cpu -> reference.
struct on_reference {};
struct on_cpu {
  using fallback = on_reference;
};

/// Plain loops in any scalar: the meaning of every op, and the oracle of every other backend.
template <Scalar T> struct reference {
  using scalar = T;
  using weight = T;
  using family = on_reference;
  static std::string name() { return "reference<" + std::string(scalar_name<T>()) + ">"; }
};

/// SIMD on the host. W: how weights are stored; Isa: the instruction set compiled for.
template <Storage W, class Isa> struct cpu {
  using scalar = float;
  using weight = W;
  using family = on_cpu;
  using isa = Isa;
  static std::string name() { return "cpu<" + std::string(scalar_name<W>()) + ", " + Isa::name + ">"; }
};

template <class B> concept Backend = Scalar<typename B::scalar> && Storage<typename B::weight> && requires {
  typename B::family;
  { B::name() } -> std::convertible_to<std::string>;
};

template <class B> using scalar_t = typename B::scalar;
template <class B> using weight_t = typename B::weight;

}  // namespace moeskip
