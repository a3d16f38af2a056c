// A memory map of a whole file (POSIX). Pages come from disk when they are first touched, and processes that map the
// same file share them. The file itself is only read. While it is mapped a file must not be shortened: reading past
// the new end raises SIGBUS. Files that are replaced whole (formats/atomic_file.hpp) are safe: the map keeps
// the old one.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <utility>

#include "moeskip/base/check.hpp"
#include "moeskip/formats/os_error.hpp"

namespace moeskip {

/// What may be done to mapped bytes. copy_on_write: a page that is written to becomes this process's own.
enum class mapping { read_only, copy_on_write };

class mapped_file {
 public:
  /// Throws file_error unless path is a regular file that can be read. An empty file gives an empty span.
  explicit mapped_file(const std::filesystem::path& path, mapping access = mapping::read_only) : path_(path.string()) {
    const descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
    // Not blocking: a pipe without a writer is opened, and refused below.
    if (file.number < 0) fail<file_error>(path_, ": cannot open: ", os_error(errno));
    struct stat status {};
    if (::fstat(file.number, &status) != 0) fail<file_error>(path_, ": cannot read its size: ", os_error(errno));
    MOESKIP_CHECK(file_error, !S_ISDIR(status.st_mode), path_, ": expected a file, got a directory");
    MOESKIP_CHECK(file_error, S_ISREG(status.st_mode), path_, ": expected a regular file, got a pipe or device");
    size_ = static_cast<std::size_t>(status.st_size);
    if (size_ == 0) return;  // mmap refuses length 0
    const bool writable = access == mapping::copy_on_write;
    // Without MAP_NORESERVE the system would want room for a copy of every page, and refuse a file larger than memory.
    void* const start = ::mmap(nullptr, size_, writable ? PROT_READ | PROT_WRITE : PROT_READ,
                               writable ? MAP_PRIVATE | MAP_NORESERVE : MAP_PRIVATE, file.number, 0);
    if (start == MAP_FAILED) fail<file_error>(path_, ": cannot map ", size_, " bytes: ", os_error(errno));
    data_ = static_cast<const std::byte*>(start);
  }

  mapped_file(mapped_file&& other) noexcept
      : path_(std::move(other.path_)),
        data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)) {}
  mapped_file& operator=(mapped_file&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~mapped_file() {
    if (data_) ::munmap(const_cast<std::byte*>(data_), size_);
  }

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  std::size_t size() const { return size_; }
  /// Gives back the memory of whole pages within these bytes; they are read again when they are touched. A hint.
  void drop(std::size_t offset, std::size_t bytes) const {
    const std::size_t page = std::size_t(::sysconf(_SC_PAGESIZE));
    const std::size_t first = (offset + page - 1) / page * page, last = std::min(offset + bytes, size_) / page * page;
    if (first < last) ::madvise(const_cast<std::byte*>(data_) + first, last - first, MADV_DONTNEED);
  }
  const std::string& path() const { return path_; }

 private:
  struct descriptor {  // closed on every way out; a map outlives its descriptor
    int number;
    ~descriptor() {
      if (number >= 0) ::close(number);
    }
  };

  std::string path_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace moeskip
