// Named arrays as files hold them: element types by name, shapes, and conversion to what a program computes
// in. Little-endian, row-major, and with no alignment promised: elements are copied out; who references them in place
// looks at alignment first.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "moeskip/base/check.hpp"
#include "moeskip/base/scalar.hpp"

namespace moeskip {

static_assert(std::endian::native == std::endian::little, "moeskip reads and writes little-endian files");

struct array_info {
  std::string name;
  std::string dtype;                // "F32", "BF16", "F64", "F16", "I64", …
  std::vector<std::int64_t> shape;  // () is a single number
  std::size_t offset = 0;           // bytes from the start of the file
  std::size_t bytes = 0;
};

struct dtype_info {
  std::string_view name;
  int bits;
};

/// The element types of safetensors (its dtype list, 2026-05).
inline constexpr dtype_info dtypes[] = {
    {"F32", 32}, {"BF16", 16},   {"F64", 64},    {"F16", 16},        {"BOOL", 8},    {"U8", 8},
    {"I8", 8},   {"U16", 16},    {"I16", 16},    {"U32", 32},        {"I32", 32},    {"U64", 64},
    {"I64", 64}, {"C64", 64},    {"F8_E5M2", 8}, {"F8_E4M3", 8},     {"F8_E8M0", 8}, {"F8_E5M2FNUZ", 8},
    {"F4", 4},   {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"F8_E4M3FNUZ", 8},
};

/// nullptr where no element type has this name.
constexpr const dtype_info* find_dtype(std::string_view name) {
  for (const dtype_info& d : dtypes)
    if (d.name == name) return &d;
  return nullptr;
}

/// The name of the element type that is stored as T is in memory.
template <class T> constexpr std::string_view dtype_of() {
  if constexpr (std::same_as<T, float>) return "F32";
  else if constexpr (std::same_as<T, double>) return "F64";
  else if constexpr (std::same_as<T, bf16>) return "BF16";
  else if constexpr (std::same_as<T, std::uint8_t>) return "U8";
  else if constexpr (std::same_as<T, std::int8_t>) return "I8";
  else if constexpr (std::same_as<T, std::int32_t>) return "I32";
  else if constexpr (std::same_as<T, std::uint32_t>) return "U32";
  else if constexpr (std::same_as<T, std::int64_t>) return "I64";
  else if constexpr (std::same_as<T, std::uint64_t>) return "U64";
  else return "";
}

/// A type of which arrays can be read and written.
template <class T> concept ArrayElement = !dtype_of<T>().empty();

/// "(3, 128)", for messages.
inline std::string shape_text(std::span<const std::int64_t> shape) {
  std::string out = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) out += text(i ? ", " : "", shape[i]);
  return out + ")";
}

/// A name from a file as it may stand in a message: quoted, control characters as ?, at most 80 bytes.
inline std::string in_quotes(std::string_view name) {
  std::size_t kept = std::min<std::size_t>(name.size(), 80);
  while (kept > 0 && kept < name.size() && (name[kept] & 0xC0) == 0x80) --kept;  // not inside a UTF-8 character
  std::string out(name.substr(0, kept));
  for (char& c : out)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = '?';
  return text("\"", out, kept < name.size() ? "…\"" : "\"");
}

namespace detail {

/// IEEE binary16 (1 sign, 5 exponent, 10 fraction bits), exactly.
inline float f16_to_float(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
  const std::uint32_t exponent = bits >> 10 & 0x1Fu, fraction = bits & 0x3FFu;
  if (exponent == 0)  // zero, or subnormal: fraction * 2^-24
    return std::bit_cast<float>(std::bit_cast<std::uint32_t>(static_cast<float>(fraction) * 0x1p-24f) | sign);
  const std::uint32_t widened = exponent == 31 ? 0xFFu : exponent + (127 - 15);  // 31: infinity or NaN
  return std::bit_cast<float>(sign | widened << 23 | fraction << 13);
}

/// Rounds to bf16 once. By way of a float that was itself rounded to nearest, ties could go wrong; so the
/// float is "rounded to odd" first (Boldo and Melquiond, 2008): of the two floats around x, the one whose
/// last bit is 1.
inline bf16 to_bf16(double x) {
  const float nearest = static_cast<float>(x);
  std::uint32_t word = std::bit_cast<std::uint32_t>(nearest);
  const double back = nearest;
  if (back != x && !std::isnan(x) && (word & 1u) == 0) word += std::abs(back) > std::abs(x) ? ~0u : 1u;
  return bf16(std::bit_cast<float>(word));
}

template <class To, class From> To convert_element(From x) {
  if constexpr (std::same_as<From, bf16>) return To(static_cast<float>(x));
  else if constexpr (std::same_as<To, bf16> && std::same_as<From, double>) return to_bf16(x);
  else return static_cast<To>(x);
}

template <class Stored, class To, class Widen> void copy_elements(std::span<To> out, const std::byte* in, Widen widen) {
  for (std::size_t i = 0; i < out.size(); ++i) {
    Stored element;
    std::memcpy(&element, in + i * sizeof element, sizeof element);  // in may be unaligned
    out[i] = convert_element<To>(widen(element));
  }
}

}  // namespace detail

/// Copies array elements of the named type from bytes to out, rounding to nearest where out is narrower.
/// Floating-point types convert to each other; all others must match. False where they do not. Needs
/// in.size() to fit out.
template <ArrayElement T>
[[nodiscard]] bool convert_array(std::span<T> out, std::string_view dtype, std::span<const std::byte> in) {
  const auto as_is = [](auto x) { return x; };
  if (dtype == dtype_of<T>()) {
    if (!out.empty()) std::memcpy(out.data(), in.data(), out.size_bytes());
    return true;
  }
  if constexpr (std::floating_point<T> || std::same_as<T, bf16>) {
    if (dtype == "F32") return detail::copy_elements<float>(out, in.data(), as_is), true;
    if (dtype == "F64") return detail::copy_elements<double>(out, in.data(), as_is), true;
    if (dtype == "BF16") return detail::copy_elements<bf16>(out, in.data(), as_is), true;
    if (dtype == "F16") return detail::copy_elements<std::uint16_t>(out, in.data(), detail::f16_to_float), true;
  }
  return false;
}

}  // namespace moeskip
