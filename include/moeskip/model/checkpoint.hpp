// Checkpoints: safetensors files whose metadata holds the variant and its sizes. Opt-in: brings nlohmann-json.
#pragma once

#include <filesystem>
#include <set>

#include "moeskip/formats/safetensors.hpp"
#include "moeskip/model/metadata.hpp"
#include "moeskip/model/model.hpp"

namespace moeskip {

namespace detail {

/// Adds every tensor of a block to the writer, under its name behind a prefix.
template <class T> void add_block(safetensors_writer& file, const std::vector<tensor_info>& tensors, vec<const T> block,
                                  const std::string& prefix = {}) {
  for (const tensor_info& t : tensors)
    file.add(prefix + t.name, std::vector<std::int64_t>(t.shape.begin(), t.shape.end()),
             std::span<const T>(block.data() + t.offset, std::size_t(t.size)));
}

/// Reads them back; shapes and names must fit.
template <class T> void read_block(const safetensors_file& file, const std::vector<tensor_info>& tensors, vec<T> block,
                                   const std::string& prefix = {}) {
  for (const tensor_info& t : tensors) {
    const std::vector<std::int64_t> shape(t.shape.begin(), t.shape.end());
    file.read<T>(prefix + t.name, std::span<const std::int64_t>(shape),
                 std::span<T>(block.data() + t.offset, std::size_t(t.size)));
  }
}

/// A file with weights that the model has no place for is another model's: of a tied model read from an untied one's
/// file, say. What other prefixes name (an optimizer's state) is none of the model's business.
inline void refuse_strangers(const safetensors_file& file, const std::vector<tensor_info>& expected,
                             const std::string& path) {
  std::set<std::string_view> known;
  for (const tensor_info& t : expected) known.insert(t.name);
  for (const array_info& a : file.arrays())
    MOESKIP_CHECK(file_error,
                  !(a.name.starts_with("model.") || a.name.starts_with("lm_head")) || known.contains(a.name), path,
                  ": unexpected tensor ", a.name, ": the variant and sizes in its metadata have no such weight");
}

}  // namespace detail

/// Writes the weights as they are stored; selection biases, whose odd sizes would put others out of step, come last.
/// `about`: what else shall be known of them, such as to_metadata(calibration); read_metadata() gives it back. All or
/// nothing: see formats/atomic_file.hpp. Throws file_error, and config_error for a policy whose numbers would be lost
/// (see `fields` in examples/05_your_own_router.hpp), or for a key of `about` that is the config's own.
template <class V, class B>
void save(const model<V, B>& m, const std::filesystem::path& path, const string_map& about = {}) {
  safetensors_writer file;
  const string_map own = to_metadata(m.configuration());
  for (const auto& [key, value] : own) file.metadata(key, value);
  for (const auto& [key, value] : about) {
    MOESKIP_CHECK(config_error, !own.contains(key), "save: about: expected keys that the config does not use, got ",
                  key);
    file.metadata(key, value);
  }
  for (const bool biases : {false, true})
    for (std::size_t i = 0; i < m.tensors().size(); ++i)
      if (const tensor_info& t = m.tensors()[i]; (t.kind == tensor_kind::selection_bias) == biases)
        file.add(t.name, {t.shape.begin(), t.shape.end()}, std::span(m.tensor(i).data(), std::size_t(t.size)));
  file.write(path);
}

/// All metadata of a file: the config's, and what else it was saved with. Throws file_error.
inline string_map read_metadata(const std::filesystem::path& path) { return safetensors_file(path).metadata(); }

/// Loads the folders of presets: see model/pretrained.hpp.
template <class V, class B> struct pretrained;

/// The model in a file, or in a folder where V is a preset; sizes and numbers come from its metadata, weights are
/// converted to what B stores. What else a file holds beside weights (an optimizer's state) is ignored. Throws
/// file_error that names every difference between the file's variant and V.
template <class V, class B> model<V, B> load(const std::filesystem::path& path) {
  if constexpr (requires { typename V::huggingface; })
    if (std::filesystem::is_directory(path)) return pretrained<V, B>::load(path);
  const safetensors_file file(path);
  const config<V> c = from_metadata<V>(file.metadata(), path.string());
  model_weights<V, weight_t<B>> nothing;  // only measured: a file that lacks tensors must not make us allocate
  const std::vector<tensor_info> tensors = bind_weights<V, weight_t<B>>(c, nothing, nullptr);
  for (const tensor_info& t : tensors) file.expect(t.name, std::vector<std::int64_t>(t.shape.begin(), t.shape.end()));
  detail::refuse_strangers(file, tensors, path.string());
  model<V, B> m(c, typename model<V, B>::uninitialised{});
  detail::read_block<weight_t<B>>(file, m.tensors(), m.block());
  return m;
}

}  // namespace moeskip
