// Replaces operator new of a test program: every allocation is told to the test first. For one .cpp of a program.
#pragma once

#include <cstdlib>
#include <new>

namespace tests {

/// Defined by the test; may throw std::bad_alloc.
void on_allocation(std::size_t bytes);

inline void* watched_allocate(std::size_t size, std::size_t align) {
  on_allocation(size);
  void* p = std::aligned_alloc(align, (size + align - 1) / align * align);
  if (!p) throw std::bad_alloc();
  return p;
}

}  // namespace tests

// Not inlined: g++ would see free() meet a pointer from operator new, and warn.
[[gnu::noinline]] void* operator new(std::size_t size) {
  return tests::watched_allocate(size, alignof(std::max_align_t));
}
[[gnu::noinline]] void* operator new(std::size_t size, std::align_val_t align) {
  return tests::watched_allocate(size, std::size_t(align));
}
[[gnu::noinline]] void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  try {
    return tests::watched_allocate(size, alignof(std::max_align_t));
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
