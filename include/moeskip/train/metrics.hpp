// Metrics of a run: a file of JSON objects, one a line, appended as the run goes. Each line reaches the file in one
// write of its own, so a crash loses at most the line that was being written. Opt-in: brings nlohmann-json.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "moeskip/formats/atomic_file.hpp"

namespace moeskip {

/// One JSON object in the making: json_line().number("step", 3).open("exits").number("2", 1.5).close().done().
/// Keys must need no escapes.
class json_line {
 public:
  /// Numbers that JSON cannot hold (NaN, infinities) become null.
  template <class N> json_line& number(std::string_view key, N value) {
    name(key);
    if constexpr (std::floating_point<N>) text_ += std::isfinite(value) ? text(value) : "null";
    else text_ += text(value);
    return *this;
  }
  json_line& open(std::string_view key) {
    name(key), text_ += '{';
    return *this;
  }
  json_line& close() {
    text_ += '}';
    return *this;
  }
  std::string done() const { return text_ + "}\n"; }

 private:
  void name(std::string_view key) {
    if (text_.back() != '{') text_ += ',';
    text_ += text("\"", key, "\":");
  }
  std::string text_ = "{";
};

class metrics_file {
 public:
  /// For a run that begins after `steps` finished ones. With steps = 0 the file must be new or empty; otherwise it is
  /// continued: lines of later steps, which a crash left behind, and an unfinished last line are removed. Throws
  /// file_error.
  metrics_file(const std::filesystem::path& path, std::uint64_t steps) : path_(path.string()) {
    if (std::filesystem::is_regular_file(path) && std::filesystem::file_size(path) > 0) {
      MOESKIP_CHECK(file_error, steps > 0, path_,
                    ": holds the metrics of another run: name another file, remove this one, or resume that run");
      cut(steps);
    }
    file_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (file_ < 0) fail<file_error>(path_, ": cannot write: ", os_error(errno));
  }
  metrics_file(const metrics_file&) = delete;
  ~metrics_file() { ::close(file_); }

  /// The last line that was kept, null where there is none.
  const nlohmann::json& last() const { return last_; }

  void append(std::string_view line) {
    for (std::size_t done = 0; done < line.size();) {
      const ::ssize_t more = ::write(file_, line.data() + done, line.size() - done);
      if (more < 0 && errno == EINTR) continue;
      if (more < 0) fail<file_error>(path_, ": cannot write: ", os_error(errno));
      done += std::size_t(more);
    }
  }

 private:
  void cut(std::uint64_t steps) {
    std::ifstream in(path_, std::ios::binary);
    const std::string content{std::istreambuf_iterator<char>(in), {}};
    MOESKIP_CHECK(file_error, in.good() || in.eof(), path_, ": cannot read");
    std::string kept;
    int number = 1;
    for (std::size_t at = 0, end; (end = content.find('\n', at)) != std::string::npos; at = end + 1, ++number) {
      const std::string_view line(content.data() + at, end - at);
      const nlohmann::json parsed = nlohmann::json::parse(line, nullptr, false);
      const auto step = parsed.is_object() ? parsed.find("step") : parsed.end();
      MOESKIP_CHECK(file_error, parsed.is_object() && step != parsed.end() && step->is_number_unsigned(), path_, ":",
                    number, ": expected a line of metrics with a step");
      if (step->get<std::uint64_t>() > steps) continue;
      kept.append(line), kept += '\n';
      last_ = parsed;
    }
    if (kept.size() == content.size()) return;
    atomic_file out(path_);
    out.write(kept.data(), kept.size());
    out.commit();
  }

  std::string path_;
  int file_ = -1;
  nlohmann::json last_;
};

}  // namespace moeskip
