// The memory of this process, watched while it works.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include <fcntl.h>
#include <unistd.h>

#include "moeskip/base/check.hpp"

namespace bench {

/// A line of /proc/self/status, in bytes: RssAnon, memory that stands in no file; RssFile, pages of files; VmHWM, the
/// most of both that there was. 0 where there is no such line.
inline double status_of(const std::string& name) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with(name + ":")) return std::stod(line.substr(name.size() + 1)) * 1024;
  return 0;
}

/// The most anonymous memory beyond what there was at first. The system keeps no such mark, so a thread looks every
/// 2 ms: what comes and goes between two looks is missed.
class anonymous_peak {
 public:
  anonymous_peak() : first_(status_of("RssAnon")), watcher_([this] { watch(); }) {}
  anonymous_peak(const anonymous_peak&) = delete;
  ~anonymous_peak() { stop(); }

  /// Bytes; ends the watch.
  double stop() {
    if (!watcher_.joinable()) return most_ - first_;
    done_ = true, watcher_.join();
    return (most_ = std::max(most_, status_of("RssAnon"))) - first_;
  }

 private:
  void watch() {
    for (; !done_; std::this_thread::sleep_for(std::chrono::milliseconds(2)))
      most_ = std::max(most_, status_of("RssAnon"));
  }

  double first_, most_ = 0;
  std::atomic<bool> done_ = false;
  std::thread watcher_;
};

/// Takes the pages of a file from the system's cache, where nobody has them mapped. Throws file_error.
inline void drop_from_cache(const std::filesystem::path& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  MOESKIP_CHECK(moeskip::file_error, file >= 0, path.string(), ": cannot open");
  ::fsync(file);
  ::posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
  ::close(file);
}

}  // namespace bench
