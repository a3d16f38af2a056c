// Training curves from the metrics file of a run (train/metrics.hpp): losses in nats become bits. Opt-in: brings
// nlohmann-json.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <numbers>
#include <string>
#include <string_view>

#include "moeskip/eval/report/data.hpp"
#include "moeskip/formats/text.hpp"

namespace moeskip::report {

/// A last line that is not whole, as a running or killed run leaves it, is passed over. Throws file_error that names
/// line and field for any other that is no line of metrics, and where there is none.
inline training_curves read_training_log(const std::filesystem::path& path) {
  const std::string content = read_text(path), name = path.string();
  training_curves out;
  int number = 1;
  for (std::size_t start = 0, end; (end = content.find('\n', start)) != std::string::npos; start = end + 1, ++number) {
    const auto line = nlohmann::json::parse(content.substr(start, end - start), nullptr, false);
    MOESKIP_CHECK(file_error, line.is_object(), name, ":", number, ": expected a line of metrics (a JSON object), got ",
                  line.is_discarded() ? "no JSON" : line.type_name());
    const auto tokens = line.find("tokens");
    MOESKIP_CHECK(file_error, tokens != line.end() && tokens->is_number(), name, ":", number,
                  ": tokens: expected a number, got ", tokens == line.end() ? "nothing" : tokens->type_name());
    const auto read = [&](const char* field, auto& curves, double per_bit) {
      const auto exits = line.find(field);
      if (exits == line.end()) return;
      MOESKIP_CHECK(file_error, exits->is_object(), name, ":", number, ": ", field,
                    ": expected losses by exit layer, got ", exits->type_name());
      for (const auto& [exit, value] : exits->items()) {
        int layer = 0;
        const char* last = exit.data() + exit.size();
        const auto parsed = std::from_chars(exit.data(), last, layer);
        MOESKIP_CHECK(file_error, parsed.ec == std::errc{} && parsed.ptr == last && layer > 0, name, ":", number, ": ",
                      field, ": expected exit layers, got '", exit.substr(0, 40), "'");
        if (value.is_number())
          curves[layer].push_back({tokens->template get<double>(), value.template get<double>() / per_bit});
      }
    };
    read("exits", out.training, std::numbers::ln2);
    read("validation", out.validation, 1);
  }
  MOESKIP_CHECK(file_error, !out.training.empty(), name, ": expected lines of metrics with exits, got none");
  return out;
}

}  // namespace moeskip::report
