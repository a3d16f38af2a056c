// How an op finds its kernel. An op is a function object that checks shapes once and hands over to
//   kernel<Op, Family>::run(backend, …)
// of the backend's family, or of the family that it falls back to. A kernel is a specialisation in a header of its own,
// so headers may come in any order before the first call. docs/adr/0001-kernels-as-specialisations.md
#pragma once

#include <type_traits>

#include "moeskip/concepts/backend.hpp"

namespace moeskip {

template <class Op, class Family> struct kernel;  // specialised beside the loops: template <> struct kernel<…>

namespace detail {

template <class K> concept is_defined = requires { sizeof(K); };

struct no_kernel {};

template <class Op, class Family> consteval auto find_family() {
  if constexpr (is_defined<kernel<Op, Family>>) return Family{};
  else if constexpr (requires { typename Family::fallback; }) return find_family<Op, typename Family::fallback>();
  else return no_kernel{};
}

}  // namespace detail

/// The family whose kernel runs Op on backend B: B's own, or the one it falls back to.
template <class Op, class B> using family_of = decltype(detail::find_family<Op, typename B::family>());

/// Whether backend B has a kernel of its own for Op (and does not fall back to another family's).
template <class Op, class B> inline constexpr bool runs_on = std::is_same_v<family_of<Op, B>, typename B::family>;

/// Whether any family that B may use has a kernel for Op. Stages that are composed of smaller ops ask.
template <class Op, class B> inline constexpr bool has_kernel = !std::is_same_v<family_of<Op, B>, detail::no_kernel>;

template <class Op, class B, class... Arguments> void run_kernel(B& backend, Arguments&&... arguments) {
  using family = family_of<Op, B>;
  static_assert(
      !std::is_same_v<family, detail::no_kernel>,
      "moeskip: this backend has no kernel for the op; see the op's header under moeskip/ops for its contract");
  if constexpr (!std::is_same_v<family, detail::no_kernel>) kernel<Op, family>::run(backend, arguments...);
}

}  // namespace moeskip
