// Memory whose contents stand in a file, and may not be in memory at present.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__unix__)
  #include <sys/mman.h>
  #include <unistd.h>
#endif

namespace moeskip {

/// Asks the system to fetch these bytes, without waiting. Touching them one after the other fetches a few pages at a
/// time, each while the program waits; what was asked for comes in large pieces, side by side. Advice: memory that
/// stands in no file, or is there already, is left as it is.
inline void will_need([[maybe_unused]] const void* from, [[maybe_unused]] std::size_t bytes) {
#if defined(__unix__)
  static const std::uintptr_t page = std::uintptr_t(::sysconf(_SC_PAGESIZE));
  const std::uintptr_t first = reinterpret_cast<std::uintptr_t>(from) / page * page;
  const std::uintptr_t last = reinterpret_cast<std::uintptr_t>(from) + bytes;
  if (bytes) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_WILLNEED);
#endif
}

}  // namespace moeskip
