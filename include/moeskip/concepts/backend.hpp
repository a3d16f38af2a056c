// Backends: where a model runs and how its weights are stored. A backend names
//   scalar   what activations, sums and gradients are computed in
//   weight   what weights are stored as
//   family   whose kernels it takes (ops/contract.hpp); a family may name another to fall back to
#pragma once

#include <concepts>
#include <exception>
#include <string>

#include "moeskip/base/scalar.hpp"
#include "moeskip/fwd.hpp"
#include "moeskip/tensor/view.hpp"

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

/// SIMD on the host. W: how weights are stored; Isa: the instruction set compiled for; Product: what linear maps round
/// both factors to, those of up to 16 rows (decoding) only where the weights are stored so. With bf16 large ones take
/// half as long on processors with AVX512-BF16, and are slower on others. Sums are f32, and so are norms, losses,
/// routing and attention, but for attention's products while training.
template <Storage W, class Isa, Storage Product> struct cpu {
  static_assert(std::same_as<Product, float> || std::same_as<Product, bf16>,
                "moeskip: cpu<W, Isa, Product> multiplies in float or bf16");
  using scalar = float;
  using weight = W;
  using family = on_cpu;
  using isa = Isa;
  using product = Product;
  using unrounded = cpu<W, Isa, float>;
  static std::string name() {
    const std::string products = std::same_as<Product, float> ? "" : ", products in bf16";
    return "cpu<" + std::string(scalar_name<W>()) + ", " + Isa::name + products + ">";
  }
};

template <class B> concept Backend = Scalar<typename B::scalar> && Storage<typename B::weight> && requires {
  typename B::family;
  { B::name() } -> std::convertible_to<std::string>;
};

template <class B> using scalar_t = typename B::scalar;
template <class B> using weight_t = typename B::weight;

/// b, or where b rounds the factors of products the same without rounding: for scores whose order decides.
template <class B> decltype(auto) unrounded(B& b) {
  if constexpr (requires { typename B::unrounded; }) return typename B::unrounded{};
  else return (b);
}

/// Waits until all that b was asked for is done, where b runs ahead of its caller: before the host reads what ops
/// wrote, and before it writes to memory that they may still read.
template <class B> void settle(B& b) {
  if constexpr (requires { b.settle(); }) b.settle();
}
/// Whether it runs ahead.
template <class B> inline constexpr bool runs_late = requires(B& b) { b.settle(); };
/// Whether what b is asked for now is kept, to be done again and again later (backend/cuda/script.hpp).
template <class B> bool keeps(B& b) {
  if constexpr (requires { b.keeps(); }) return b.keeps();
  else return false;
}
/// At the end of what a caller asked of a model: settles, for whoever looks at it next.
template <class B> void hand_over(B& b) {
  if (!keeps(b)) settle(b);
}
/// Gives up what b was asked for and has not done: whoever asked has failed, and its memory goes.
template <class B> void forget(B& b) {
  if constexpr (requires { b.forget(); }) b.forget();
}
/// Does so where its scope is left by an exception.
template <class B> class [[nodiscard]] forgets_on_failure {
 public:
  explicit forgets_on_failure(B& b) : backend_(b) {
    if constexpr (runs_late<B>) before_ = std::uncaught_exceptions();
  }
  forgets_on_failure(const forgets_on_failure&) = delete;
  ~forgets_on_failure() {
    if constexpr (runs_late<B>)
      if (std::uncaught_exceptions() > before_) forget(backend_);
  }

 private:
  B& backend_;
  int before_ = 0;
};

/// The host has written what ops will read again and again: it may go to where they are done.
template <class B, class T> void bring(B& b, vec<T> v) {
  if constexpr (requires { b.bring(v); }) b.bring(v);
}

/// How many numbers of logits exist at a time while training: about a million, unless B says otherwise.
template <class B> inline constexpr index_t logits_at_once = index_t{1} << 20;
template <class B>
  requires requires { B::logits_at_once; }
inline constexpr index_t logits_at_once<B> = B::logits_at_once;

}  // namespace moeskip
