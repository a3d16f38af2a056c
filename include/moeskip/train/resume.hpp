// A training run in a file: weights in full precision, the optimizer's state, the next step and all options. Resuming
// gives the same bits as never having stopped. Opt-in: brings nlohmann-json.
#pragma once

#include <filesystem>
#include <vector>

#include "moeskip/model/checkpoint.hpp"
#include "moeskip/train/trainer.hpp"

namespace moeskip {

namespace detail {

template <class B, class V, class O, class S> string_map run_options(const training<V, O, S>& t) {
  string_map map{{"training.steps", text(t.steps)},
                 {"training.weight", std::string(scalar_name<weight_t<B>>())},
                 {"training.accumulate", text(t.accumulate)},
                 {"training.clip", text(t.clip)},
                 {"training.exit_scale", text(t.exit_scale)},
                 {"training.distill", text(t.distill)},
                 {"training.ema", text(t.ema)},
                 {"training.exit_weighting", std::string(name_of(t.exit_weighting))},
                 {"training.masks", text(t.masks.value)},
                 {"curriculum", std::string(V::curriculum::name)},
                 {"schedule", std::string(S::name)},
                 {"optimizer", std::string(O::name)}};
  const auto add = [&](std::string_view slot, const auto& policy) {
    expect_saved_whole(slot, policy);
    if constexpr (requires { policy.fields(policy, [](std::string_view, const auto&) {}); })
      policy.fields(policy,
                    [&](std::string_view field, const auto& value) { map[text(slot, ".", field)] = to_text(value); });
  };
  add("curriculum", t.curriculum), add("schedule", t.schedule), add("optimizer", t.optimizer);
  return map;
}

}  // namespace detail

/// Writes the whole state of a run; load<V, B>() reads the same file as a model. `about`: what else must be the same
/// when it is resumed, such as random_windows::about(). All or nothing. Throws file_error, and config_error for a
/// policy whose numbers would be lost.
template <class V, class B, class O, class S>
void save(trainer<V, B, O, S>& run, const std::filesystem::path& path, const string_map& about = {}) {
  using T = scalar_t<B>;
  const model<V, B>& m = run.trained();
  safetensors_writer file;
  for (const auto& [key, value] : to_metadata(m.configuration())) file.metadata(key, value);
  for (const auto& [key, value] : detail::run_options<B>(run.options())) file.metadata(key, value);
  for (const auto& [key, value] : about) file.metadata(key, value);
  file.metadata("training.next_step", text(run.next_step()));
  detail::add_block<T>(file, m.tensors(), run.master());
  if (run.keeps_average()) detail::add_block<T>(file, m.tensors(), run.average(), "ema.");
  run.optimizer_state().blocks([&](std::string_view name, const auto& tensors, buffer<T>& block) {
    detail::add_block<T>(file, tensors, block.view(), text("optimizer.", name, "."));
  });
  file.write(path);
}

/// Continues the run in the file. The trainer must have the same variant, sizes, options and type of stored weights,
/// and `about` must be what was saved; otherwise throws file_error that names every difference, and the trainer stays
/// as it was.
template <class V, class B, class O, class S>
void resume(trainer<V, B, O, S>& run, const std::filesystem::path& path, string_map about = {}) {
  using T = scalar_t<B>;
  const model<V, B>& m = run.trained();
  const safetensors_file file(path);
  string_map expected = to_metadata(m.configuration());
  expected.erase("moeskip_version");
  expected.merge(detail::run_options<B>(run.options()));
  expected.merge(about);
  std::string wrong = differences(expected, file.metadata());
  for (const auto& [key, value] : file.metadata())  // what the saved run was told about its data must be said again
    if (key.starts_with("data.") && !expected.contains(key))
      wrong += text(wrong.empty() ? "" : "; ", key, ": expected nothing, got ", value);
  MOESKIP_CHECK(file_error, wrong.empty(), path.string(), ": the file holds another run: ", wrong);
  std::uint64_t step = 0;
  const auto next = file.metadata().find("training.next_step");
  MOESKIP_CHECK(file_error, next != file.metadata().end() && detail::parse(next->second, step), path.string(),
                ": metadata training.next_step: expected a number");
  // Into fresh memory first: a file that turns out damaged half way must not leave half a run.
  std::vector<T> weights(std::size_t(m.block().size())), average(std::size_t(run.average().size()));
  const auto all = [](std::vector<T>& v) { return vec<T>(v.data(), index_t(v.size())); };
  typename O::template on<B> state(m.tensors());
  detail::read_block<T>(file, m.tensors(), all(weights));
  state.blocks([&](std::string_view name, const auto& tensors, buffer<T>& block) {
    detail::read_block<T>(file, tensors, block.view(), text("optimizer.", name, "."));
  });
  if (run.keeps_average()) detail::read_block<T>(file, m.tensors(), all(average), "ema.");
  std::copy(average.begin(), average.end(), run.average().begin());
  std::copy(weights.begin(), weights.end(), run.master().begin());
  run.optimizer_state() = std::move(state);
  run.continue_at(step);
}

}  // namespace moeskip
