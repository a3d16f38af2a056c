// Scalars: what weights are stored as, what sums are kept in, and how one becomes another.
//   bf16   the upper half of a float32 (8 exponent bits, 7 fraction bits); rounding to nearest, ties to even
// Ops are templates on the scalar, so std::complex<double> runs through them (complex-step derivatives).
#pragma once

#include <bit>
#include <complex>
#include <concepts>
#include <cstdint>
#include <string_view>
#include <type_traits>

#include "moeskip/base/config.hpp"

namespace moeskip {

/// Storage only: arithmetic happens in float.
struct bf16 {
  std::uint16_t bits = 0;

  bf16() = default;
  MOESKIP_HD constexpr explicit bf16(float value) : bits(round(std::bit_cast<std::uint32_t>(value))) {}
  MOESKIP_HD constexpr operator float() const { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }

 private:
  MOESKIP_HD static constexpr std::uint16_t round(std::uint32_t word) {
    const bool is_nan = (word & 0x7fffffffu) > 0x7f800000u;
    if (is_nan) return static_cast<std::uint16_t>((word >> 16) | 0x40u);  // keep it a NaN, and quiet
    return static_cast<std::uint16_t>((word + 0x7fffu + ((word >> 16) & 1u)) >> 16);
  }
};
static_assert(sizeof(bf16) == 2 && std::is_trivially_copyable_v<bf16>);

template <class T> struct is_complex : std::false_type {};
template <class T> struct is_complex<std::complex<T>> : std::true_type {};

/// A number that ops compute in: float, double, or complex for derivatives.
template <class T> concept Scalar = std::floating_point<T> || is_complex<std::remove_const_t<T>>::value;

/// A number that weights are stored in.
template <class W> concept Storage = Scalar<W> || std::same_as<std::remove_const_t<W>, bf16>;

/// The real number behind T: comparisons (top-k, masks, maxima) look only at it, so that branches of a complex-step
/// evaluation are those of the real one.
template <class T> MOESKIP_HD constexpr auto real_part(const T& x) {
  if constexpr (is_complex<T>::value) return x.real();
  else return x;
}
template <class T> using real_t = decltype(real_part(T{}));

/// Widens a stored weight to the computing scalar.
template <class T, class W> MOESKIP_HD constexpr T to(const W& w) {
  if constexpr (std::same_as<W, bf16>) return T(static_cast<float>(w));
  else return T(w);
}

template <class T> constexpr std::string_view scalar_name() {
  using U = std::remove_const_t<T>;
  if constexpr (std::same_as<U, float>) return "f32";
  else if constexpr (std::same_as<U, double>) return "f64";
  else if constexpr (std::same_as<U, bf16>) return "bf16";
  else return "complex";
}

}  // namespace moeskip
