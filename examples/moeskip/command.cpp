#include "command.hpp"

#include <algorithm>

#include "moeskip/eval/windows.hpp"
#include "moeskip/formats/text.hpp"
#include "moeskip/formats/tokenizer/byte.hpp"

namespace tool {

void model_options::declare(CLI::App& app) {
  app.add_option("--model", path,
                 "A checkpoint (.safetensors) of a variant in examples/models; also the .run file of a training")
      ->required()
      ->type_name("FILE");
  app.add_option("--weights", weights,
                 "Hold weights as stored, or as f32 or bf16; or leave them in their file (stored)")
      ->check(CLI::IsMember({"stored", "f32", "bf16", "in-file"}).description(""))
      ->type_name("TYPE");
  app.add_option("--threads", threads, "Threads to use (all)")->check(within(1, 1024))->type_name("N");
}

std::unique_ptr<any_model> model_options::open() const {
  if (threads > 0) ms::set_thread_count(threads);
  return blaming("--model", [&] {
    return tool::open(path, weights == "f32"       ? storage::f32
                            : weights == "bf16"    ? storage::bf16
                            : weights == "in-file" ? storage::in_file
                                                   : storage::as_stored);
  });
}

void text_options::declare(CLI::App& app) {
  app.add_option("--text", path, "A UTF-8 text that the model was not trained on")->required()->type_name("FILE");
  app.add_option("--length", length, "Bytes read in one window (the model's context)")
      ->check(within(2, 1 << 24))
      ->type_name("N");
  app.add_option("--windows", windows, "At most so many windows, evenly spread over the text; 0 reads all of it (200)")
      ->check(within(0, 1 << 30))
      ->type_name("N");
}

std::vector<int> text_options::read() const {
  return blaming("--text", [&] { return ms::tokenizer::byte::encode(ms::read_text(path)); });
}

ms::window_options text_options::window_options(const model_facts& m) const {
  MOESKIP_CHECK(ms::config_error, length <= m.sizes.context, "--length: expected at most the context of ",
                m.sizes.context, ", got ", length);
  return {.length = length ? length : m.sizes.context, .sequences = 8, .max_windows = windows};
}

texts windows_of(std::span<const int> tokens, int length, int most) {
  MOESKIP_CHECK(ms::config_error, tokens.size() > std::size_t(length), "--text: is too short: expected at least ",
                length + 1, " bytes, got ", tokens.size());
  return ms::cut_windows(tokens, length, most);
}

void threshold_option::declare(CLI::App& app) {
  app.add_option(
         "--threshold", value,
         "Confidence at which a token leaves: the probability of its most likely next one (as calibrated, else 0.9)")
      ->check(within(0.0f, 2.0f))
      ->type_name("P");
}

std::pair<float, std::string> threshold_option::of(const model_facts& m) const {
  if (value >= 0) return {value, "as asked for"};
  if (!m.metadata.contains("exit_calibration.rule")) return {0.9f, "the default; moeskip calibrate finds a better one"};
  const ms::calibration c = blaming("--model", [&] { return ms::calibration_from(m.metadata, m.file); });
  if (c.rule != ms::exit_rule::max_probability::name) return {0.9f, "the default: another rule was calibrated"};
  return {c.threshold, ms::text("calibrated: ", c.loss, " at most ", c.tolerance)};
}

void json_options::declare(CLI::App& app) {
  app.add_flag("--json", print, "Print the results as JSON");
  app.add_option("--out", path, "Write the results as JSON into this file")->type_name("FILE");
}

void json_options::expect_writable() const {
  if (!path.empty()) blaming("--out", [&] { ms::atomic_file attempt(path); });
}

bool json_options::write(const nlohmann::json& results) const {
  const std::string lines = results.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  if (!path.empty()) write_file("--out", path, lines);
  if (print) tool::print(lines);
  return print;
}

void write_file(std::string_view option, const std::string& path, std::string_view content) {
  blaming(option, [&] {
    ms::atomic_file file(path);
    file.write(content.data(), content.size());
    file.commit();
  });
}

std::string fixed(double value, int digits) {
  char out[400];
  std::snprintf(out, sizeof out, "%.*f", digits, value);
  return out;
}

std::string wrapped(std::string_view text, std::size_t columns) {
  std::string out;
  std::size_t line = 0;  // bytes in it
  while (!text.empty()) {
    const std::size_t end = std::min(text.find_first_of(" \n"), text.size());
    if (line > 0 && line + 1 + end > columns) out += '\n', line = 0;
    else if (line > 0) out += ' ', ++line;
    out += text.substr(0, end), line += end;
    if (end < text.size() && text[end] == '\n') out += '\n', line = 0;
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return out;
}

std::string table(const std::vector<std::vector<std::string>>& rows) {
  const auto columns = [](std::string_view s) {
    return std::size_t(std::count_if(s.begin(), s.end(), [](char c) { return (c & 0xC0) != 0x80; }));
  };
  std::vector<std::size_t> wide;
  for (const auto& row : rows)
    for (std::size_t c = 0; c < row.size(); ++c) {
      if (c == wide.size()) wide.push_back(0);
      wide[c] = std::max(wide[c], columns(row[c]));
    }
  std::string out;
  for (const auto& row : rows) {
    out += " ";
    for (std::size_t c = 0; c < row.size(); ++c) {
      const std::string space(wide[c] - columns(row[c]), ' ');
      out += c == 0 ? " " + row[c] + space : "  " + space + row[c];
    }
    out += "\n";
  }
  return out;
}

}  // namespace tool
