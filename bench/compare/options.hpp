// What compare is asked to do, and with which files: by default those of examples/models.
#pragma once

#include <algorithm>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "moeskip/eval/calibration.hpp"
#include "moeskip/formats/text.hpp"
#include "moeskip/model/checkpoint.hpp"
#include "moeskip/moeskip.hpp"

namespace bench {

namespace ms = moeskip;
namespace fs = std::filesystem;

inline constexpr const char* usage =
    "compare: a baseline MoE against a model that skips, on the same prompts\n"
    "  --models DIR      where the three files below are looked for (examples/models)\n"
    "  --model FILE      a model of all_moe or every_4th (all_moe.safetensors)\n"
    "  --baseline FILE   a MoE of the default policies, trained without exits and dropout "
    "(all_moe_baseline.safetensors,\n"
    "                    if it is as large as the model); none: without its rows\n"
    "  --draft FILE      a small dense model (draft.safetensors); none: without its row\n"
    "  --text FILE       prompts are pieces of it, and bits per byte are measured on it (moeskip's documents)\n"
    "  --threshold P     of early exit (as calibrated in the file, else 0.9)\n"
    "  --prompts N       (8)\n"
    "  --json FILE       one JSON object a line is appended to it\n";

/// Options by name; --json is the report's.
inline std::map<std::string, std::string> parse(int argc, char** argv, std::vector<char*>& rest) {
  std::map<std::string, std::string> given{{"--models", ""}, {"--model", ""},     {"--baseline", ""}, {"--draft", ""},
                                           {"--text", ""},   {"--threshold", ""}, {"--prompts", "8"}, {"--json", ""}};
  for (int i = 1; i < argc; i += 2) {
    MOESKIP_CHECK(ms::config_error, given.contains(argv[i]), "no such option: ", argv[i], "; --help lists them");
    MOESKIP_CHECK(ms::config_error, i + 1 < argc, argv[i], " wants a value");
    if (std::string(argv[i]) == "--json") rest.push_back(argv[i]), rest.push_back(argv[i + 1]);
    given[argv[i]] = argv[i + 1];
  }
  if (given["--models"].empty()) given["--models"] = (fs::path(MOESKIP_SOURCE_DIR) / "examples/models").string();
  return given;
}

inline double number(const std::string& option, const std::string& value, double low, double high) {
  std::size_t used = 0;
  double x = low - 1;
  try {
    x = std::stod(value, &used);
  } catch (const std::exception&) {}
  MOESKIP_CHECK(ms::config_error, used == value.size() && x >= low && x <= high, option, ": expected a number from ",
                low, " to ", high, ", got '", value, "'");
  return x;
}

/// The file that an option names, or the one of that name in --models. Throws file_error where that is not there.
inline std::string file_of(std::map<std::string, std::string>& given, const std::string& option, const char* name) {
  if (!given[option].empty()) return given[option];
  const fs::path path = fs::path(given["--models"]) / name;
  MOESKIP_CHECK(ms::file_error, fs::exists(path), path.string(), ": is not there: give another with ", option, " FILE",
                option == "--model" ? "" : ", or compare without it: " + option + " none");
  return path.string();
}

/// What moeskip's authors wrote in words.
inline std::string own_documents() {
  std::vector<fs::path> files{fs::path(MOESKIP_SOURCE_DIR) / "README.md"};
  for (const auto& entry : fs::recursive_directory_iterator(fs::path(MOESKIP_SOURCE_DIR) / "docs"))
    if (entry.path().extension() == ".md") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  std::string all;
  for (const fs::path& file : files) all += ms::read_text(file) + "\n";
  return all;
}

/// What was asked for, else what the file was calibrated to.
inline float threshold_of(const std::string& asked, const std::string& model) {
  if (!asked.empty()) return float(number("--threshold", asked, 0, 2));
  const ms::string_map metadata = ms::read_metadata(model);
  return metadata.contains("exit_calibration.rule")
             ? ms::calibration_from(metadata, model).as<ms::exit_rule::max_probability>().threshold
             : 0.9f;
}

}  // namespace bench
