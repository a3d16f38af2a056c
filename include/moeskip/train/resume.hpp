// A training run in a file: weights in full precision, the optimizer's state, the next step and all options. Resuming
// gives the same bits as never having stopped. Opt-in: brings nlohmann-json.
#pragma once

#include <filesystem>

#include "moeskip/model/checkpoint.hpp"
#include "moeskip/train/trainer.hpp"

namespace moeskip {

namespace detail {

template <class V, class O> string_map run_options(const training<V, O>& t) {
  string_map map{{"training.steps", text(t.steps)},
                 {"training.accumulate", text(t.accumulate)},
                 {"training.clip", text(t.clip)},
                 {"training.exit_scale", text(t.exit_scale)},
                 {"training.curriculum", std::string(V::curriculum::name)},
                 {"training.warmup", text(t.schedule.warmup)},
                 {"training.floor", text(t.schedule.floor)},
                 {"training.masks", text(t.masks.value)},
                 {"optimizer", std::string(O::name)},
                 {"optimizer.lr", text(t.optimizer.lr)}};
  if constexpr (requires { t.optimizer.beta1; }) {
    map["optimizer.beta1"] = text(t.optimizer.beta1), map["optimizer.beta2"] = text(t.optimizer.beta2);
    map["optimizer.epsilon"] = text(t.optimizer.epsilon);
    map["optimizer.weight_decay"] = text(t.optimizer.weight_decay);
  }
  if constexpr (requires { t.curriculum.every; }) map["training.curriculum.every"] = text(t.curriculum.every);
  return map;
}

}  // namespace detail

/// Writes the whole state of a run; load<V, B>() reads the same file as a model. All or nothing. Throws file_error.
template <class V, class B, class O> void save(trainer<V, B, O>& run, const std::filesystem::path& path) {
  using T = scalar_t<B>;
  const model<V, B>& m = run.trained();
  safetensors_writer file;
  for (const auto& [key, value] : to_metadata(m.configuration())) file.metadata(key, value);
  for (const auto& [key, value] : detail::run_options(run.options())) file.metadata(key, value);
  file.metadata("training.next_step", text(run.next_step()));
  detail::add_block<T>(file, m.tensors(), run.master());
  run.optimizer_state().blocks([&](std::string_view name, buffer<T>& block) {
    detail::add_block<T>(file, m.tensors(), block.view(), text("optimizer.", name, "."));
  });
  file.write(path);
}

/// Continues the run in the file. The trainer must have the same variant, sizes and options; otherwise throws
/// file_error that names every difference, and the trainer stays as it was.
template <class V, class B, class O> void resume(trainer<V, B, O>& run, const std::filesystem::path& path) {
  using T = scalar_t<B>;
  const model<V, B>& m = run.trained();
  const safetensors_file file(path);
  string_map expected = to_metadata(m.configuration());
  expected.erase("moeskip_version");
  expected.merge(detail::run_options(run.options()));
  const std::string wrong = differences(expected, file.metadata());
  MOESKIP_CHECK(file_error, wrong.empty(), path.string(), ": the file holds another run: ", wrong);
  std::uint64_t step = 0;
  const auto next = file.metadata().find("training.next_step");
  MOESKIP_CHECK(file_error, next != file.metadata().end() && detail::parse(next->second, step), path.string(),
                ": metadata training.next_step: expected a number");
  // Into fresh memory first: a file that turns out damaged half way must not leave half a run.
  buffer<T> weights(m.block().size());
  typename O::template on<B> state(m.block().size());
  detail::read_block<T>(file, m.tensors(), weights.view());
  state.blocks([&](std::string_view name, buffer<T>& block) {
    detail::read_block<T>(file, m.tensors(), block.view(), text("optimizer.", name, "."));
  });
  std::copy(weights.view().begin(), weights.view().end(), run.master().begin());
  run.optimizer_state() = std::move(state);
  run.continue_at(step);
}

}  // namespace moeskip
