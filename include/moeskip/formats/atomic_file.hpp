// Writing a file so that readers see the old one or the new one, never a part, even after a power failure
// (POSIX):
//   write PATH.tmp-PID-N -> fsync it -> rename it to PATH -> fsync the folder
// Whatever fails (disk full, folder missing, not writable), the temporary is removed and the old file stays
// as it was. A process that is killed half-way leaves its temporary behind, and nothing else. A symbolic link
// at PATH is replaced.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>

#include "moeskip/base/check.hpp"
#include "moeskip/formats/os_error.hpp"

namespace moeskip {

class atomic_file {
 public:
  /// Opens the temporary; throws file_error where the folder is missing or not writable, or path is a
  /// directory.
  explicit atomic_file(const std::filesystem::path& path) : path_(path.string()) {
    folder_ = path.parent_path().string();
    if (folder_.empty()) folder_ = ".";
    struct stat old {};
    const bool exists = ::stat(path_.c_str(), &old) == 0;
    MOESKIP_CHECK(file_error, !exists || S_ISREG(old.st_mode), path_, ": cannot write: it exists and is ",
                  S_ISDIR(old.st_mode) ? "a directory" : "no regular file");
    static std::atomic<unsigned> count{0};
    do {  // a name left behind by a killed process of the same number is passed over
      temporary_ = text(path_, ".tmp-", ::getpid(), "-", count++);
      file_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    } while (file_ < 0 && errno == EEXIST);
    if (file_ < 0) fail<file_error>(path_, ": cannot write: ", os_error(errno));
    // A file that only its owner could read stays so.
    if (exists && ::fchmod(file_, old.st_mode & 07777) != 0) give_up("cannot set its permissions");
  }

  atomic_file(const atomic_file&) = delete;
  atomic_file& operator=(const atomic_file&) = delete;
  ~atomic_file() { roll_back(); }

  /// Appends size bytes, unbuffered.
  void write(const void* data, std::size_t size) {
    MOESKIP_CHECK(file_error, file_ >= 0, path_, ": cannot write: it was committed, or has failed before");
    const char* next = static_cast<const char*>(data);
    while (size > 0) {
      const ::ssize_t done = ::write(file_, next, std::min(size, largest_write));
      if (done < 0 && errno == EINTR) continue;
      if (done < 0) give_up("cannot write");
      next += done;
      size -= static_cast<std::size_t>(done);
      written_ += static_cast<std::size_t>(done);
    }
  }

  /// Makes what was written the file at path. Once it returns, the file survives a power failure.
  void commit() {
    MOESKIP_CHECK(file_error, file_ >= 0, path_, ": cannot commit: it was committed, or has failed before");
    if (::fsync(file_) != 0) give_up("cannot flush");
    const int closing = file_;
    file_ = -1;
    // Some file systems report a full disk only here.
    if (::close(closing) != 0 && errno != EINTR) give_up("cannot close");
    if (::rename(temporary_.c_str(), path_.c_str()) != 0) give_up("cannot rename its temporary");
    temporary_.clear();
    flush_folder();
  }

  const std::string& path() const { return path_; }
  /// The bytes written so far.
  std::size_t size() const { return written_; }

 private:
  static constexpr std::size_t largest_write = std::size_t{1} << 30;  // bytes; Linux stops short of 2^31

  [[noreturn]] void give_up(std::string_view what) {
    const int code = errno;  // before anything else can change it
    roll_back();
    fail<file_error>(path_, ": ", what, ": ", os_error(code), " (after ", written_,
                     " bytes; what the file held before is unchanged)");
  }

  void roll_back() noexcept {
    if (file_ >= 0) ::close(file_);
    file_ = -1;
    if (!temporary_.empty()) ::unlink(temporary_.c_str());
    temporary_.clear();
  }

  /// The new name is an entry of the folder, which has to reach the disk too.
  void flush_folder() const {
    const int folder = ::open(folder_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    // A folder that may be written but not read cannot be flushed; the rename itself has happened.
    if (folder < 0 && errno == EACCES) return;
    const bool flushed = folder >= 0 && ::fsync(folder) == 0;
    const int code = errno;
    if (folder >= 0) ::close(folder);
    // EINVAL: a file system on which folders cannot be flushed (some network ones).
    if (!flushed && code != EINVAL)
      fail<file_error>(path_, ": is written, but its folder cannot be flushed: ", os_error(code),
                       "; the file may be missing after a power failure");
  }

  std::string path_, folder_, temporary_;
  int file_ = -1;
  std::size_t written_ = 0;
};

}  // namespace moeskip
