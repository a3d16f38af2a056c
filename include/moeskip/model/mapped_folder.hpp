// Models in folders of Hugging Face whose weights are read where they stand in the files, as far as they can be.
//   used in place   what has the type that B stores and is not transposed; where several tensors are read as one matrix
//                   (queries, keys and values; gate and up), if they stand directly behind one another
//   copied          everything else, tensor by tensor, converted as load() does
// safetensors sorts the tensors of a file by name (its prepare(), src/tensor.rs): an expert's down_proj, gate_proj and
// up_proj stand behind one another, so its gate and up are one matrix; experts come as 0, 1, 10, 11, …, 2, 20, so they
// are no cube (tensor/planes.hpp). Why, and how much is copied: docs/adr/0015-weights-of-others-in-place.md
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "moeskip/model/pretrained.hpp"

namespace moeskip {

namespace detail {

/// The first element of a weight as it stands in its file, or nullptr where it has to be converted.
template <class W> const W* as_it_stands(const planned_tensor& p) {
  if (!p.found || p.found.info->dtype != dtype_of<W>() || p.from.stride != 0) return nullptr;
  if (p.to.kind == tensor_kind::selection_bias) return nullptr;  // see copy_weight
  const std::byte* const at = p.found.file->bytes(*p.found.info).data() + std::size_t(p.from.first) * sizeof(W);
  return reinterpret_cast<std::uintptr_t>(at) % alignof(W) == 0 ? reinterpret_cast<const W*>(at) : nullptr;
}

/// The same for all weights. Those that are read as one matrix stand behind one another, or none is used in place.
template <class W> std::vector<const W*> as_they_stand(const std::vector<planned_tensor>& plan) {
  std::vector<const W*> at(plan.size());
  for (std::size_t first = 0, end = 0; first < plan.size(); first = end) {
    bool all = true;
    for (end = first; end == first || (end < plan.size() && plan[end].to.joined); ++end) {
      at[end] = as_it_stands<W>(plan[end]);
      all = all && at[end] && (end == first || at[end] == at[end - 1] + plan[end - 1].to.size);
    }
    if (!all) std::fill(at.begin() + std::ptrdiff_t(first), at.begin() + std::ptrdiff_t(end), nullptr);
  }
  return at;
}

}  // namespace detail

/// The model in a folder, its weights read from the files where they can be, and else converted into memory of its own;
/// model::bytes_in_files() says how much stands in the files. These must not be written to while the model lives (files
/// that are replaced do no harm). Such a model runs, and can be saved; to be trained it has to be loaded. Where memory
/// holds all files, ask(ask_ahead::nothing): asking costs, and fetches nothing then.
/// progress(done, all): elements converted. Throws file_error as load_pretrained does.
template <class V, class B, class Adjust = detail::keep_config, class Progress = detail::no_progress>
model<V, B> load_pretrained_mapped(const std::filesystem::path& path, Adjust&& adjust = {}, Progress&& progress = {}) {
  using W = weight_t<B>;
  static_assert(std::is_same_v<typename B::family, on_cpu> || std::is_same_v<typename B::family, on_reference>,
                "moeskip: load_mapped leaves weights in files of the host, which this backend does not see: use load");
  const config<V> c = read_pretrained_config<V>(path, adjust);
  const auto folder = std::make_shared<const huggingface::folder>(path);
  const std::vector<detail::planned_tensor> plan = detail::plan_loading(c, *folder);
  outside_weights<const W> in_place{detail::as_they_stand<W>(plan), folder};
  if (std::none_of(in_place.at.begin(), in_place.at.end(), [](const W* at) { return at; })) in_place = {};
  W* copied = nullptr;
  model<V, B> m(
      c,
      [&](index_t size) {
        buffer<W> block(size);
        copied = block.data();
        return block;
      },
      std::move(in_place));
  detail::convert_weights(m, copied, plan, progress);
  return m;
}

}  // namespace moeskip
