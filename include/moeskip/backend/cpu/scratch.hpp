// Memory that a thread keeps from one kernel call to the next.
#pragma once

#include <algorithm>
#include <memory>
#include <new>

#include "moeskip/base/config.hpp"

namespace moeskip::cpu_kernels {

/// Scratch of the calling thread, at least `size` elements, 64-byte aligned. It at least doubles when it grows, so that
/// a size that rises by one each token seldom allocates. Each Use has its own.
template <class Use, class T = float> T* thread_scratch(index_t size) {
  struct release {
    void operator()(T* p) const { ::operator delete (p, std::align_val_t{alignment}); }
  };
  thread_local std::unique_ptr<T, release> block;
  thread_local index_t capacity = 0;
  if (capacity < size) {
    const index_t grown = std::max(size, 2 * capacity);
    block.reset(static_cast<T*>(::operator new (std::size_t(grown) * sizeof(T), std::align_val_t{alignment})));
    capacity = grown;
  }
  return block.get();
}

}  // namespace moeskip::cpu_kernels
