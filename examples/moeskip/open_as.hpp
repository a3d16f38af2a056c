// The implementation of any_model for one variant and backend.
#pragma once

#include <optional>

#include "any_model.hpp"
#include "moeskip/eval/machine_limits.hpp"
#include "moeskip/model/mapped.hpp"
#include "moeskip/moeskip.hpp"

namespace tool {

template <class V, class B> class opened final : public any_model {
 public:
  opened(const std::string& path, const std::string& variant, bool in_file)
      : model_(in_file ? ms::load_mapped<V, B>(path) : ms::load<V, B>(path)) {
    const ms::config<V>& c = model_.configuration();
    facts_ = {.file = path,
              .variant = variant,
              .policies = ms::variant_name<V>(),
              .weights = sizeof(ms::weight_t<B>) == 2 ? "bf16" : "f32",
              .bytes_per_weight = sizeof(ms::weight_t<B>),
              .sizes = c.sizes,
              .experts_per_token = V::router::experts_per_token,
              .footprint = ms::footprint(model_),
              .description = ms::describe(model_),
              .metadata = ms::read_metadata(path)};
    for (int e = 1; e <= c.sizes.layers; ++e)
      if (e == c.sizes.layers || c.exits.contains(e)) facts_.exits.push_back(e);
  }
  const model_facts& facts() const override { return facts_; }

  std::vector<ms::exit_quality> evaluate(std::span<const int> tokens, const ms::window_options& windows,
                                         ms::expert_observer& watch) override {
    return ms::evaluate(model_, tokens, windows, watch);
  }
  ms::depth_readings read_depth(const texts& all) override {
    return ms::read_depth_at(model_, facts_.exits, std::span<const std::vector<int>>(all));
  }
  ms::calibration calibrate(const texts& all, const ms::calibration_options& options) override {
    return ms::calibrate(model_, std::span<const std::vector<int>>(all), options);
  }
  continuation generate(std::span<const int> prompt, const ms::generation& options, const decoder_choice& how,
                        const std::function<void(const ms::emitted&)>& sink) override {
    if (!session_) session_.emplace(model_);
    session_->done = {};
    const auto run = [&](const auto& decoder) {
      ms::generated made = ms::generate(session_->session(), prompt, options, decoder, sink);
      return continuation{std::move(made), session_->done};
    };
    switch (how.what) {
      case decoder_choice::early_exit:
        return run(ms::decoder::early_exit<>{.rule = {.threshold = how.threshold}});
      case decoder_choice::speculative:
        return run(ms::speculative_decoder::compose<ms::counted_draft<ms::draft::self>>{
            .draft = {.base = {}, .to = &session_->done}});
      default:
        return run(ms::decoder::autoregressive{});
    }
  }
  ms::machine_limits limits() const override {
    // Weights stand in one block, or in one file, hardly a gap between them.
    std::uintptr_t first = ~std::uintptr_t{}, end = 0;
    for (std::size_t i = 0; i < model_.tensors().size(); ++i) {
      const auto at = reinterpret_cast<std::uintptr_t>(model_.tensor(i).data());
      first = std::min(first, at);
      end = std::max(end, at + std::size_t(model_.tensors()[i].size) * sizeof(ms::weight_t<B>));
    }
    return ms::measure_limits({reinterpret_cast<const std::byte*>(first), end - first});
  }
  void save(const std::string& path, const ms::string_map& about) override {
    ms::string_map all = about;
    const ms::string_map own = ms::to_metadata(model_.configuration());
    if (!facts_.metadata.contains("training.next_step"))
      for (const auto& [key, value] : facts_.metadata)
        if (!own.contains(key)) all.emplace(key, value);
    ms::save(model_, path, all);
  }

 private:
  ms::model<V, B> model_;
  model_facts facts_;
  std::optional<ms::counted_session<V, B>> session_;  // holds a reference to the model
};

template <class V, class B>
std::unique_ptr<any_model> open_as(const std::string& path, const std::string& variant, bool in_file) {
  return std::make_unique<opened<V, B>>(path, variant, in_file);
}

}  // namespace tool
