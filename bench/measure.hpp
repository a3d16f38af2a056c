// Measuring on a machine whose speed drifts: what is compared runs in turn, and only medians of pairs are
// reported.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "moeskip/base/check.hpp"
#include "moeskip/base/parallel.hpp"
#include "moeskip/memory/buffer.hpp"

namespace bench {

inline double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

template <class Work> double time_of(Work&& work) {
  const double start = seconds();
  work();
  return seconds() - start;
}

/// Of an even number the mean of the two in the middle.
inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t n = values.size();
  return (values[(n - 1) / 2] + values[n / 2]) / 2;
}

/// (largest − smallest) / median.
inline double spread(const std::vector<double>& values) {
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  return (*high - *low) / median(values);
}

/// One line of the table and of the JSON file. `of`: what a ratio is a ratio of.
class report {
 public:
  /// Takes `--json FILE` from the arguments; lines are appended to it. Throws on a bad option or file.
  report(int argc, char** argv) {
    for (int i = 1; i < argc; ++i) {
      const bool known = std::string(argv[i]) == "--json" && i + 1 < argc;
      MOESKIP_CHECK(moeskip::config_error, known, "unknown or incomplete option ", argv[i], "; expected --json FILE");
      path_ = argv[++i];
      file_.open(path_, std::ios::app);
      MOESKIP_CHECK(moeskip::file_error, file_.is_open(), path_, ": cannot be opened for writing");
    }
  }

  void line(const std::string& name, double value, const std::string& unit, const std::string& of = {},
            const std::string& remark = {}) {
    std::printf("%-34s %12.4g %-12s %s%s%s\n", name.c_str(), value, unit.c_str(), of.empty() ? "" : "of ", of.c_str(),
                remark.empty() ? "" : ("  (" + remark + ")").c_str());
    std::fflush(stdout);
    quiet_line(name, value, unit, of, remark);
  }

  /// Only in the JSON file.
  void quiet_line(const std::string& name, double value, const std::string& unit, const std::string& of = {},
                  const std::string& remark = {}) {
    if (!file_.is_open()) return;
    nlohmann::ordered_json json{{"name", name}, {"value", value}, {"unit", unit}};
    if (!of.empty()) json["of"] = of;
    if (!remark.empty()) json["remark"] = remark;
    file_ << json.dump() << std::endl;
    MOESKIP_CHECK(moeskip::file_error, file_.good(), path_, ": writing failed");
  }

 private:
  std::string path_;
  std::ofstream file_;
};

/// Runs main's body; errors become one line on stderr and exit status 1.
template <class Body> int guarded(Body&& body) {
  try {
    body();
    return 0;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "bench: %s\n", e.what());
    return 1;
  }
}

}  // namespace bench
