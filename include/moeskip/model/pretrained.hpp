// Models in folders as transformers writes them: loading, and saving what it can load again. A preset's nested
// `huggingface` says how config.json becomes a config, and where each weight lies. Opt-in: brings nlohmann-json.
//
//   auto model = ms::load<ms::presets::olmoe, ms::cpu<ms::bf16>>("OLMoE-1B-7B-0924");
//   ms::save_pretrained(model, "folder");
#pragma once

#include <filesystem>
#include <mutex>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "moeskip/base/parallel.hpp"
#include "moeskip/formats/huggingface/config.hpp"
#include "moeskip/formats/huggingface/folder.hpp"
#include "moeskip/model/checkpoint.hpp"
#include "moeskip/model/tensor_source.hpp"

namespace moeskip {

namespace detail {

/// A weight of the model and where it was found; a weight of an exit, which no folder has, is made from another one.
struct planned_tensor {
  tensor_info to;
  tensor_source from;
  huggingface::stored_tensor found;
};

/// "model.exits.2.norm.weight" -> "model.norm.weight": what an exit that learns begins as; "" for what is drawn.
inline std::string exit_begins_as(std::string_view name, const sizes& s) {
  if (name.ends_with(".norm.weight")) return "model.norm.weight";
  if (name.ends_with(".head.weight")) return s.tied ? "model.embed_tokens.weight" : "lm_head.weight";
  return "";
}
inline bool of_exit(std::string_view name) { return name.starts_with("model.exits."); }

/// Tensors that are no weights of the model: buffers that older versions of transformers wrote, and what a preset's
/// folders are known to hold beside.
template <class V> bool left_out(std::string_view name, const sizes& s) {
  if constexpr (requires { V::huggingface::leaves_out(name, s); })
    if (V::huggingface::leaves_out(name, s)) return true;
  return name.ends_with(".rotary_emb.inv_freq");
}

/// Whether a folder's lm_head repeats the embedding, as some writers of tied models have it.
inline bool repeats(const huggingface::stored_tensor& a, const huggingface::stored_tensor& b) {
  return a && b && a.info->dtype == b.info->dtype && a.info->shape == b.info->shape &&
         std::ranges::equal(a.file->bytes(*a.info), b.file->bytes(*b.info));
}

/// Finds every weight in the folder. Throws file_error that names what is missing, misshapen or left over.
template <class V> std::vector<planned_tensor> plan_loading(const config<V>& c, const huggingface::folder& folder) {
  model_weights<V, float> nothing;  // only measured
  std::vector<planned_tensor> plan;
  std::set<std::string_view> used;
  std::string problems;
  int count = 0;
  const auto complain = [&](const auto&... parts) {
    if (++count <= 10) problems += text(problems.empty() ? "" : "; ", parts...);
  };
  for (const tensor_info& t : bind_weights(c, nothing, static_cast<float*>(nullptr))) {
    if (of_exit(t.name)) {
      plan.push_back({t, {}, {}});
      continue;
    }
    std::string names;
    huggingface::stored_tensor found;
    for (tensor_source& from : V::huggingface::sources(t, c.sizes)) {
      names += text(names.empty() ? "" : " or ", in_quotes(from.name));
      if (!(found = folder.find(from.name))) continue;
      if (!std::ranges::equal(found.info->shape, from.shape))
        complain(found.file->path(), ": tensor ", in_quotes(from.name), ": expected shape ", shape_text(from.shape),
                 ", got ", shape_text(found.info->shape));
      used.insert(found.info->name);
      plan.push_back({t, std::move(from), found});
      break;
    }
    if (!found) complain("expected a tensor ", names, ", got none of that name");
  }
  for (const auto& [name, stored] : folder.tensors())
    if (!used.contains(name) && !left_out<V>(name, c.sizes) &&
        !(c.sizes.tied && name == "lm_head.weight" && repeats(stored, folder.find("model.embed_tokens.weight"))))
      complain(stored.file->path(), ": unexpected tensor ", in_quotes(name),
               ": a model of these sizes has no such weight");
  if (count > 10) problems += text("; and ", count - 10, " more");
  MOESKIP_CHECK(file_error, problems.empty(), folder.path().string(), ": ", problems);
  return plan;
}

/// The weight out of the bytes of its source, converted. False where the types do not convert. Training moves a
/// selection bias by steps whose sum need not be 0, so its mean may drift far off; only differences choose, and a type
/// of few digits keeps these best without the mean.
template <class W>
bool copy_weight(vec<W> out, const tensor_info& t, const tensor_source& from, const huggingface::stored_tensor& found) {
  const std::span<const std::byte> bytes = found.file->bytes(*found.info);
  if (sizeof(W) >= sizeof(float) || t.kind != tensor_kind::selection_bias)
    return copy_from_source<W>(out, t, from, found.info->dtype, bytes);
  std::vector<float> exact(static_cast<std::size_t>(t.size));
  if (!copy_from_source<float>({exact.data(), t.size}, t, from, found.info->dtype, bytes)) return false;
  double sum = 0;
  for (const float bias : exact) sum += double(bias);
  for (index_t i = 0; i < t.size; ++i) out[i] = W(float(double(exact[std::size_t(i)]) - sum / double(t.size)));
  return true;
}

/// Fills the weights that stand in the model's block (of which `block` is the first element) from the files, a thread a
/// tensor, and gives pages of the files back behind them; then exits, which no file has, with what they begin as.
template <class V, class B, class Progress>
void convert_weights(model<V, B>& m, weight_t<B>* block, const std::vector<planned_tensor>& plan, Progress&& progress) {
  using W = weight_t<B>;
  const std::vector<tensor_info>& tensors = m.tensors();
  const index_t all = block_size(tensors);
  index_t done = 0;
  std::mutex counting;
  parallel_tasks(index_t(plan.size()), [&](index_t i) {
    const auto& [none, from, found] = plan[std::size_t(i)];
    const tensor_info& t = tensors[std::size_t(i)];
    if (!found || t.offset == tensor_info::outside) return;
    MOESKIP_CHECK(file_error, copy_weight<W>({block + t.offset, t.size}, t, from, found), found.file->path(),
                  ": tensor ", in_quotes(from.name), ": expected elements that convert to ", dtype_of<W>(), ", got ",
                  found.info->dtype);
    found.file->drop(*found.info);
    const std::lock_guard lock(counting);
    progress(done += t.size, all);
  });
  const draws draw{seed{0}, stream::weights};
  for (std::size_t i = 0; i < plan.size(); ++i) {
    const tensor_info& t = tensors[i];
    if (!of_exit(t.name)) continue;
    W* const to = block + t.offset;
    const auto first = std::ranges::find(tensors, exit_begins_as(t.name, m.sizes()), &tensor_info::name);
    const double bound = std::sqrt(3.0 / double(t.shape.back()));
    if (first != tensors.end()) std::ranges::copy(m.tensor(std::size_t(first - tensors.begin())), to);
    else
      for (index_t j = 0; j < t.size; ++j)
        to[j] = t.start == initial::zeros ? W(0.f)
                                          : W(float(bound * (2 * draw.uniform_double(i, 0, std::uint64_t(j)) - 1)));
  }
  progress(all, all);
}

struct keep_config {
  void operator()(auto&) const {}
};
struct no_progress {
  void operator()(index_t, index_t) const {}
};

}  // namespace detail

/// The config that a folder describes. `adjust` sets what it does not know: exits, dropout, a shorter context. Throws
/// file_error that names every field that is not as the preset V expects.
template <class V, class Adjust = detail::keep_config>
config<V> read_pretrained_config(const std::filesystem::path& folder, Adjust&& adjust = {}) {
  huggingface::config_file file(folder);
  file.expect_architecture(V::huggingface::architecture);
  config<V> c = V::huggingface::template configure<V>(file);
  file.finish(V::huggingface::name);
  adjust(c);
  MOESKIP_CHECK(file_error, valid(c), file.path(), ": ", problem(c));
  return c;
}

/// The model in a folder, its weights converted to what B stores, tensor by tensor, a thread each; pages of the
/// file are given back behind them, so that memory holds the model and little else. An exit with weights of its own
/// starts as the full model's head, a low-rank correction without effect. progress(done, all): elements, after every
/// tensor and at the end. Throws file_error; nothing large is allocated before names and shapes are known to fit.
template <class V, class B, class Adjust = detail::keep_config, class Progress = detail::no_progress>
model<V, B> load_pretrained(const std::filesystem::path& path, Adjust&& adjust = {}, Progress&& progress = {}) {
  const config<V> c = read_pretrained_config<V>(path, adjust);
  const huggingface::folder folder(path);
  const std::vector<detail::planned_tensor> plan = detail::plan_loading(c, folder);
  model<V, B> m(c, typename model<V, B>::uninitialised{});
  detail::convert_weights(m, m.block().data(), plan, progress);
  return m;
}

/// What load<V, B>(path) calls where path is a folder and V a preset.
template <class V, class B> struct pretrained {
  static model<V, B> load(const std::filesystem::path& path) { return load_pretrained<V, B>(path); }
};

/// Writes config.json and model.safetensors, with the names that transformers gives V's weights, as they are stored;
/// the folder is made. Shards that lie there are left, and no longer read. Throws config_error for a model with exits
/// of its own, which such a folder cannot hold, and file_error.
template <class V, class B> void save_pretrained(const model<V, B>& m, const std::filesystem::path& path) {
  using W = weight_t<B>;
  safetensors_writer file;
  file.metadata("format", "pt");
  for (std::size_t i = 0; i < m.tensors().size(); ++i) {
    const tensor_info& t = m.tensors()[i];
    MOESKIP_CHECK(config_error, !detail::of_exit(t.name),
                  "save_pretrained: expected weights that transformers knows, "
                  "got ",
                  t.name, ": use save() for a model whose exits have their own");
    tensor_source as = V::huggingface::sources(t, m.sizes()).front();
    file.add(std::move(as.name), std::move(as.shape), std::span(m.tensor(i).data(), std::size_t(t.size)));
  }
  std::error_code failed;
  std::filesystem::create_directories(path, failed);
  const std::string fields = V::huggingface::describe(m.configuration());
  const std::string dtype = std::is_same_v<W, bf16> ? "bfloat16" : std::is_same_v<W, double> ? "float64" : "float32";
  const std::string document =
      text("{\n", fields, "  \"dtype\": \"", dtype, "\",\n  \"torch_dtype\": \"", dtype, "\"\n}\n");
  file.write(path / "model.safetensors");
  atomic_file config_json(path / "config.json");
  config_json.write(document.data(), document.size());
  config_json.commit();
}

}  // namespace moeskip
