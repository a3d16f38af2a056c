// Lists of unlike length in a golden file: one flat array, and where each list ends.
#pragma once

#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "moeskip/formats/safetensors.hpp"

namespace tests {

namespace ms = moeskip;

/// Runs of a flat array: the i-th ends at ends[i].
template <class T, class Run = std::vector<T>>
std::vector<Run> runs(const ms::safetensors_file& file, const std::string& name, const std::string& ends_name) {
  const ms::array_info *all = file.find(name), *ends = file.find(ends_name);
  REQUIRE(all);
  REQUIRE(ends);
  std::vector<T> flat(std::size_t(all->shape[0]));
  std::vector<std::int32_t> end(std::size_t(ends->shape[0]));
  file.read<T>(name, {all->shape[0]}, std::span<T>(flat));
  file.read<std::int32_t>(ends_name, {ends->shape[0]}, std::span<std::int32_t>(end));
  std::vector<Run> out;
  for (std::int32_t at = 0; const std::int32_t stop : end) {
    out.emplace_back(flat.begin() + at, flat.begin() + stop);
    at = stop;
  }
  return out;
}

}  // namespace tests
