// Owned memory on the host: aligned and zeroed, or elements that stand in a file.
#pragma once

#include <algorithm>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

#include "moeskip/base/config.hpp"
#include "moeskip/tensor/view.hpp"

#if defined(__linux__)
  #include <sys/mman.h>
#endif

namespace moeskip {

/// Where buffers take their memory. A backend whose device does not see the host's heap names another source before the
/// first buffer that it shall see (backend/cuda/reach.hpp); memory goes back to where it came from.
struct memory_source {
  void* (*take)(std::size_t bytes, std::size_t align);  // throws std::bad_alloc
  void (*give)(void* p, std::size_t bytes, std::size_t align);
};
inline constexpr memory_source host_memory{
    [](std::size_t bytes, std::size_t align) { return ::operator new (bytes, std::align_val_t{align}); },
    [](void* p, std::size_t, std::size_t align) { ::operator delete (p, std::align_val_t{align}); }};
inline memory_source buffers_from = host_memory;

/// `size` elements of a trivial T, zeroed. From 4 MiB on they stand on huge pages where the system has them: reading
/// gigabytes of weights through 4 KiB pages costs the hardware prefetcher its run at every page end. Throws error,
/// which names the bytes, where the system has no such memory.
template <class T> class buffer {
  static_assert(std::is_trivially_copyable_v<T>);
  static constexpr std::size_t huge_page = std::size_t{2} << 20;
  static constexpr std::size_t most = (std::size_t(-1) >> 1) / sizeof(T);  // elements

 public:
  buffer() = default;
  explicit buffer(index_t size, const memory_source& from = buffers_from) : size_(size) {
    if (size == 0) return;
    MOESKIP_CHECK(error, size > 0 && std::size_t(size) <= most, "out of memory: ", size, " elements of ", sizeof(T),
                  " bytes were asked for");
    const std::size_t bytes = std::size_t(size) * sizeof(T);
    const std::size_t align = bytes >= 2 * huge_page ? huge_page : alignment;
    data_ = {static_cast<T*>(allocate(bytes, align, from)), release{.bytes = bytes, .align = align, .give = from.give}};
#if defined(__linux__)
    if (align == huge_page) madvise(data_.get(), bytes, MADV_HUGEPAGE);  // advice: a refusal changes nothing
#endif
    std::fill_n(data_.get(), size, T{});
  }

  /// Elements that stand elsewhere and live as long as `owner`.
  buffer(T* elements, index_t size, std::shared_ptr<void> owner)
      : data_(elements, release{.owner = std::move(owner)}), size_(size) {}

  buffer(buffer&& other) noexcept : data_(std::move(other.data_)), size_(std::exchange(other.size_, 0)) {}
  buffer& operator=(buffer&& other) noexcept {
    data_ = std::move(other.data_), size_ = std::exchange(other.size_, 0);
    return *this;
  }

  /// Whether the memory is another's, such as the pages of a file.
  bool borrowed() const { return data_.get_deleter().owner != nullptr; }
  index_t size() const { return size_; }
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  vec<T> view() { return {data(), size_}; }
  vec<const T> view() const { return {data(), size_}; }
  T& operator[](index_t i) { return data_[std::size_t(i)]; }
  const T& operator[](index_t i) const { return data_[std::size_t(i)]; }

 private:
  static void* allocate(std::size_t bytes, std::size_t align, const memory_source& from) {
    try {
      return from.take(bytes, align);
    } catch (const std::bad_alloc&) {
      fail("out of memory: ", bytes, " bytes were asked for");
    }
  }

  struct release {
    std::size_t bytes = 0, align = alignment;
    void (*give)(void*, std::size_t, std::size_t) = host_memory.give;
    std::shared_ptr<void> owner{};  // of borrowed elements
    void operator()(T* p) const {
      if (!owner) give(p, bytes, align);
    }
  };
  std::unique_ptr<T[], release> data_;
  index_t size_ = 0;
};

}  // namespace moeskip
