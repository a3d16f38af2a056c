// The model in a folder whose kind is known when the program runs: config.json picks the preset.
//
//   ms::load_any<ms::cpu<ms::bf16>>("folder", [](auto model) { … });
//   ms::load_any_mapped<ms::cpu<ms::bf16>>("folder", …);   // weights stay in the files, see model/mapped_folder.hpp
//   ms::load_any<ms::cpu<ms::bf16>, ms::presets::llama, ms::presets::olmoe>("folder", …);   // these alone are compiled
#pragma once

#include "moeskip/model/mapped_folder.hpp"
#include "moeskip/model/presets/deepseek_moe.hpp"
#include "moeskip/model/presets/llama.hpp"
#include "moeskip/model/presets/mixtral.hpp"
#include "moeskip/model/presets/olmoe.hpp"
#include "moeskip/model/presets/openmoe.hpp"
#include "moeskip/model/presets/qwen_moe.hpp"

namespace moeskip {

template <class... Presets> struct preset_list {};
using all_presets = preset_list<presets::llama, presets::mixtral, presets::olmoe, presets::openmoe, presets::qwen2_moe,
                                presets::qwen3_moe, presets::dots1, presets::glm4_moe>;

namespace detail {

/// Why a model is not among the presets, where there is a reason to give.
inline std::string_view refusal(std::string_view architecture) {
  for (const std::string_view name : {"DeepseekV2", "DeepseekV3", "deepseek_v2", "deepseek_v3", "Glm4MoeLite"})
    if (architecture.starts_with(name))
      return " (multi-head latent attention is not supported; the experts of DeepSeek-V3 are, under ordinary "
             "attention: presets::dots1, presets::glm4_moe)";
  if (architecture.starts_with("SwitchTransformers"))
    return " (encoders are not supported; its routing is router::switch_top1)";
  if (architecture.starts_with("GptOss")) return " (attention sinks are not supported)";
  return "";
}

/// visit(std::type_identity<Preset>{}) with the first preset of that architecture.
template <class Visitor, class... Presets>
void find_preset(preset_list<Presets...>, const std::filesystem::path& path, Visitor&& visit) {
  const huggingface::config_file file(path);
  const std::string architecture = file.architecture();
  std::string names;
  const auto matches = [&]<class P>(std::type_identity<P>) {
    names += text(names.empty() ? "" : ", ", P::huggingface::architecture);
    if (architecture != P::huggingface::architecture) return false;
    return visit(std::type_identity<P>{}), true;
  };
  const bool found = (matches(std::type_identity<Presets>{}) || ...);
  MOESKIP_CHECK(file_error, found, file.path(), ": architectures: expected one of ", names, ", got ",
                in_quotes(architecture), refusal(architecture));
}

template <class... Presets> using presets_or_all =
    std::conditional_t<sizeof...(Presets) == 0, all_presets, preset_list<Presets...>>;

}  // namespace detail

/// Calls visitor(model<Preset, B>) with the first of Presets (default: all) whose architecture config.json names.
/// progress as for load_pretrained, such as a loading_bar. Throws file_error where there is none, and where the preset
/// does not fit: see load_pretrained.
template <class B, class... Presets, class Visitor, class Progress = detail::no_progress>
void load_any(const std::filesystem::path& path, Visitor&& visitor, Progress&& progress = {}) {
  detail::find_preset(detail::presets_or_all<Presets...>{}, path, [&]<class P>(std::type_identity<P>) {
    visitor(load_pretrained<P, B>(path, detail::keep_config{}, progress));
  });
}

/// The same, with weights that stay in the files where they can: see load_pretrained_mapped.
template <class B, class... Presets, class Visitor, class Progress = detail::no_progress>
void load_any_mapped(const std::filesystem::path& path, Visitor&& visitor, Progress&& progress = {}) {
  detail::find_preset(detail::presets_or_all<Presets...>{}, path, [&]<class P>(std::type_identity<P>) {
    visitor(load_pretrained_mapped<P, B>(path, detail::keep_config{}, progress));
  });
}

}  // namespace moeskip
