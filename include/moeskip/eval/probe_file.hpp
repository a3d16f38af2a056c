// exit_rule::probe in a file of its own (safetensors). Opt-in: brings nlohmann-json.
#pragma once

#include <filesystem>

#include "moeskip/decode/exit_rule/probe.hpp"
#include "moeskip/formats/safetensors.hpp"
#include "moeskip/model/metadata.hpp"

namespace moeskip {

inline constexpr const char* probe_weights = "exit_probe.weights";  // (L, D + 1)

/// All or nothing. Throws file_error, and config_error for a probe that was not trained.
inline void save(const exit_rule::probe& p, const std::filesystem::path& path) {
  MOESKIP_CHECK(config_error, p.dim > 0 && !p.weights.empty() && p.weights.size() % std::size_t(p.dim + 1) == 0,
                "save: expected a probe that ms::fit_probe made, got one with ", p.weights.size(), " weights");
  safetensors_writer file;
  const auto columns = std::int64_t(p.dim) + 1;
  file.add(probe_weights, {std::int64_t(p.weights.size()) / columns, columns}, std::span<const float>(p.weights));
  file.metadata("exit_probe.threshold", detail::to_text(p.threshold));
  file.write(path);
}

/// Throws file_error where the file holds no probe.
inline exit_rule::probe load_probe(const std::filesystem::path& path) {
  const safetensors_file file(path);
  const array_info* const found = file.find(probe_weights);
  MOESKIP_CHECK(file_error, found, path.string(), ": expected a tensor ", probe_weights,
                ", got none: is this an exit probe?");
  const std::vector<std::int64_t>& shape = found->shape;  // (L, D + 1)
  MOESKIP_CHECK(file_error, shape.size() == 2 && shape[1] >= 2, path.string(), ": ", probe_weights,
                ": expected a shape of (layers, dim + 1), got ", shape_text(shape));
  exit_rule::probe p{.dim = int(shape[1]) - 1};
  p.weights.resize(std::size_t(shape[0] * shape[1]));
  file.read<float>(probe_weights, std::span<const std::int64_t>(shape), std::span<float>(p.weights));
  const auto threshold = file.metadata().find("exit_probe.threshold");
  MOESKIP_CHECK(file_error, threshold != file.metadata().end() && detail::parse(threshold->second, p.threshold),
                path.string(), ": metadata: exit_probe.threshold: expected a number, got ",
                threshold == file.metadata().end() ? "nothing" : in_quotes(threshold->second));
  return p;
}

}  // namespace moeskip
