// Where a weight lies in a file that has other names and other packing than the model: under another name, as a part of
// a larger tensor, or transposed.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "moeskip/formats/arrays.hpp"
#include "moeskip/model/weights.hpp"

namespace moeskip {

struct tensor_source {
  std::string name;
  std::vector<std::int64_t> shape;  // of the whole tensor in the file
  index_t first = 0;                // elements in it before the weight's own
  index_t stride = 0;               // 0: stands as it is; else transposed, with this many elements from row to row
};

/// "model.layers.3.mlp.experts.7.up_proj.weight" taken apart.
struct expert_name {
  std::string layer;   // "model.layers.3."
  int expert;          // 7
  std::string matrix;  // "up_proj"

  static std::optional<expert_name> of(std::string_view name) {
    constexpr std::string_view middle = "mlp.experts.";
    const std::size_t at = name.find(middle);
    if (at == name.npos) return {};
    const std::string_view rest = name.substr(at + middle.size());
    const std::size_t dot = rest.find('.');
    int number = 0;
    for (const char c : rest.substr(0, dot)) number = 10 * number + (c - '0');
    return expert_name{std::string(name.substr(0, at)), number,
                       std::string(rest.substr(dot + 1, rest.rfind('.') - dot - 1))};
  }
};

/// The same weight in the fused tensors of transformers 5: gate_up_proj (E, 2F, D), down_proj (E, D, F).
inline std::optional<tensor_source> fused_expert(const tensor_info& t, const sizes& s) {
  const std::optional<expert_name> e = expert_name::of(t.name);
  if (!e) return {};
  const index_t F = s.ffn, D = s.dim;
  if (e->matrix == "down_proj")
    return tensor_source{e->layer + "mlp.experts.down_proj", {s.experts, D, F}, e->expert * D * F};
  return tensor_source{
      e->layer + "mlp.experts.gate_up_proj", {s.experts, 2 * F, D}, (2 * e->expert + (e->matrix == "up_proj")) * F * D};
}

namespace detail {

/// Copies the weight out of the bytes of its source, converted. False where the types do not convert.
template <class W> bool copy_from_source(vec<W> out, const tensor_info& t, const tensor_source& from,
                                         std::string_view dtype, std::span<const std::byte> bytes) {
  const std::size_t element = std::size_t(find_dtype(dtype)->bits) / 8;
  const auto part = [&](index_t first, index_t count) {
    return bytes.subspan(std::size_t(first) * element, std::size_t(count) * element);
  };
  if (!convert_array(std::span<W>(out.data(), 0), dtype, {})) return false;  // 4-bit types have no byte of their own
  if (from.stride == 0)
    return convert_array(std::span<W>(out.data(), std::size_t(out.size())), dtype, part(from.first, out.size()));
  const index_t rows = t.shape[0], cols = t.shape[1];
  std::vector<W> column(static_cast<std::size_t>(rows));
  for (index_t c = 0; c < cols; ++c) {
    if (!convert_array(std::span<W>(column), dtype, part(from.first + c * from.stride, rows))) return false;
    for (index_t r = 0; r < rows; ++r) out[r * cols + c] = column[std::size_t(r)];
  }
  return true;
}

}  // namespace detail

}  // namespace moeskip
