// A text corpus: one UTF-8 file, taken as it is (nothing is normalised or removed).
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>

#include "moeskip/base/check.hpp"
#include "moeskip/formats/os_error.hpp"
#include "moeskip/formats/utf8.hpp"

namespace moeskip {

/// The whole file. Throws file_error where it is missing, unreadable, a directory, empty or not UTF-8. Pipes
/// work too.
inline std::string read_text(const std::filesystem::path& path) {
  const std::string name = path.string();
  struct closer {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  const std::unique_ptr<std::FILE, closer> file(std::fopen(path.c_str(), "rb"));
  if (!file) fail<file_error>(name, ": cannot open: ", os_error(errno));

  std::string content;
  std::error_code unknown;  // a pipe has no size, and is read as well
  const auto size = std::filesystem::file_size(path, unknown);
  constexpr std::size_t chunk = std::size_t{1} << 16;  // bytes
  if (!unknown) content.reserve(static_cast<std::size_t>(size) + chunk);
  std::size_t got = chunk;
  while (got == chunk) {
    const std::size_t before = content.size();
    content.resize(before + chunk);
    got = std::fread(content.data() + before, 1, chunk, file.get());
    content.resize(before + got);
  }
  if (std::ferror(file.get())) fail<file_error>(name, ": cannot read: ", os_error(errno));
  MOESKIP_CHECK(file_error, !content.empty(), name, ": is empty, expected text");

  const std::size_t wrong = utf8_error_offset(content);
  if (wrong != content.size()) {
    constexpr char digits[] = "0123456789abcdef";
    const unsigned value = static_cast<unsigned char>(content[wrong]);
    const char hex[] = {'0', 'x', digits[value >> 4], digits[value & 15], 0};
    const auto line = 1 + std::count(content.begin(), content.begin() + static_cast<std::ptrdiff_t>(wrong), '\n');
    fail<file_error>(name, ": expected UTF-8, got ", hex, " at byte ", wrong, " (line ", line, ")");
  }
  return content;
}

}  // namespace moeskip
