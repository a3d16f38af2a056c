// What eval prints and report draws: a model and a text, measured once.
#pragma once

#include <nlohmann/json.hpp>

#include "command.hpp"
#include "moeskip/eval/report/data.hpp"

namespace tool {

/// Depth, experts and facts. Texts, speeds and training are left empty. keep_choices: of all tokens, window by window.
ms::report::report_data measure(any_model& m, std::span<const int> tokens, const ms::window_options& windows,
                                const std::string& text_name, const threshold_option& threshold,
                                bool keep_choices = false);

nlohmann::json to_json(const ms::report::decoder_speed& s);

/// All numbers of a report.
nlohmann::json to_json(const ms::report::report_data& d);

}  // namespace tool
