// The run as JSON, for programs. Numbers that have no meaning are null.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "decoding.hpp"
#include "moeskip/formats/atomic_file.hpp"
#include "training.hpp"

namespace demo {

inline nlohmann::ordered_json summary(const std::string& corpus, const training_outcome& trained,
                                      const std::vector<ms::exit_quality>& exits, const comparison& c) {
  nlohmann::ordered_json out{{"corpus", corpus},
                             {"train",
                              {{"steps", trained.steps},
                               {"tokens_per_second", trained.tokens_per_second()},
                               {"first_loss", trained.first_loss},
                               {"last_loss", trained.last_loss},
                               {"valid_bits_per_byte", exits.back().bits_per_token}}}};
  for (const ms::exit_quality& q : exits)
    out["exits"].push_back({{"layer", q.exit_layer}, {"bits_per_byte", q.bits_per_token}});
  const auto add = [&](const char* name, const decoded& d) {
    auto& to = out["decode"][name];
    to["tokens_per_second"] = d.tokens_per_second();
    to["mean_exit_layer"] = d.mean_exit_layer();
    to["acceptance_rate"] = nullptr;
    if (d.out.stats.drafted > 0) to["acceptance_rate"] = d.out.stats.acceptance_rate();
    to["identical"] = d.out.ids() == c.plain.out.ids();
  };
  add("autoregressive", c.plain), add("early_exit", c.early_exit), add("self_speculative", c.speculative);
  return out;
}

/// The old file or the new one, never a part. A path in another encoding than UTF-8 is written with U+FFFD.
inline void write(const nlohmann::ordered_json& json, const std::filesystem::path& path) {
  const std::string text = json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
  ms::atomic_file file(path);
  file.write(text.data(), text.size());
  file.commit();
}

}  // namespace demo
