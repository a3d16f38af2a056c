// What all commands share: how they are declared and started, and the options that several have.
#pragma once

#include <CLI/CLI.hpp>

#include <cstdio>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "any_model.hpp"
#include "moeskip/formats/atomic_file.hpp"

namespace tool {

/// Declares a command; the function that it returns is what the command does.
using action = std::function<void()>;
action declare_inspect(CLI::App& app);
action declare_eval(CLI::App& app);
action declare_generate(CLI::App& app);
action declare_calibrate(CLI::App& app);
action declare_report(CLI::App& app);
action declare_bench(CLI::App& app);
action declare_train(CLI::App& app);

/// What is wrong is said in terms of this range; --help stays short.
template <class N> CLI::Validator within(N lowest, N highest) {
  CLI::Validator range = CLI::Range(lowest, highest);
  range.description("");
  return range;
}

/// Errors name the option whose value was at fault.
template <class F> auto blaming(std::string_view option, F&& f) {
  try {
    return f();
  } catch (const ms::file_error& e) {
    ms::fail<ms::file_error>(option, ": ", e.what());
  } catch (const ms::config_error& e) {
    ms::fail<ms::config_error>(option, ": ", e.what());
  }
}

struct model_options {
  std::string path, weights = "stored";
  int threads = 0;

  void declare(CLI::App& app);
  std::unique_ptr<any_model> open() const;
};

/// A text, and how much of it is read.
struct text_options {
  std::string path;
  int length = 0;  // of a window; 0: the model's context
  int windows = 200;

  void declare(CLI::App& app);
  std::vector<int> read() const;
  /// As evaluate() takes them. Throws config_error that names the option.
  ms::window_options window_options(const model_facts& m) const;
};

/// At most `most` windows of `length` inputs and one target more, evenly spread as evaluate() spreads them.
texts windows_of(std::span<const int> tokens, int length, int most);

/// The threshold of early exit: as given, else as calibrated in the file, else 0.9.
struct threshold_option {
  float value = -1;

  void declare(CLI::App& app);
  /// The threshold, and where it comes from.
  std::pair<float, std::string> of(const model_facts& m) const;
};

/// Results as JSON: on standard output, into a file, or both.
struct json_options {
  bool print = false;
  std::string path;

  void declare(CLI::App& app);
  /// Before long work: throws file_error where the file cannot be written.
  void expect_writable() const;
  /// Writes them; whether standard output is taken by it.
  bool write(const nlohmann::json& results) const;
};

/// All or nothing; throws file_error that names the option.
void write_file(std::string_view option, const std::string& path, std::string_view content);

/// "12.50"
std::string fixed(double value, int digits);
/// Lines of at most `columns` bytes, broken at spaces.
std::string wrapped(std::string_view text, std::size_t columns = 100);
/// Columns, the first one left, the others right.
std::string table(const std::vector<std::vector<std::string>>& rows);
inline void print(std::string_view text) { std::fwrite(text.data(), 1, text.size(), stdout); }

}  // namespace tool
