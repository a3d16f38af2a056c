// Memory that the device sees. Buffers, and so weights, arenas and caches, come from it as soon as a CUDA backend
// exists; what is handed to a kernel is looked up here, so that a pointer into the host's heap is an error with a name
// and not a fault on the device.
#pragma once

#include <cstddef>
#include <map>
#include <mutex>

#include "moeskip/base/check.hpp"
#include "moeskip/memory/buffer.hpp"

namespace moeskip {

class reached_memory {
 public:
  static void add(const void* p, std::size_t bytes) {
    const std::lock_guard held(guard());
    ranges()[static_cast<const char*>(p)] = bytes;
  }
  static void remove(const void* p) {
    const std::lock_guard held(guard());
    ranges().erase(static_cast<const char*>(p));
  }
  /// Whether all bytes of [p, p + bytes) were taken while a CUDA backend existed.
  static bool has(const void* p, std::size_t bytes) {
    const std::lock_guard held(guard());
    const auto* first = static_cast<const char*>(p);
    auto range = ranges().upper_bound(first);
    return range != ranges().begin() && (--range, first + bytes <= range->first + range->second);
  }
  /// Throws error unless it is so.
  static void expect(std::string_view op, const void* p, std::size_t bytes) {
    MOESKIP_CHECK(error, bytes == 0 || has(p, bytes), op, ": the device does not see ", bytes,
                  " bytes of an argument: expected memory of a buffer or arena that grew after the first cuda backend "
                  "of the program was made");
  }

 private:
  static std::mutex& guard() {
    static std::mutex m;
    return m;
  }
  static std::map<const char*, std::size_t>& ranges() {
    static auto* r = new std::map<const char*, std::size_t>;  // outlives every static buffer
    return *r;
  }
};

}  // namespace moeskip
