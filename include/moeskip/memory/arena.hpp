// A stack of memory for activations and temporaries: taking is a pointer increment, giving back is leaving a scope.
// It grows by whole blocks while a program meets its largest step, and never again: no heap allocation inside a step.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <type_traits>
#include <vector>

#include "moeskip/concepts/workspace.hpp"
#include "moeskip/memory/buffer.hpp"

namespace moeskip {

class arena {
  struct position {
    std::size_t block = 0, used = 0;    // bytes taken in that block
    std::size_t before = 0, below = 0;  // bytes taken in the blocks below, and their sizes
  };

 public:
  static constexpr std::size_t first_block = std::size_t{1} << 20;  // bytes

  arena() = default;
  arena(const arena&) = delete;  // scopes refer to it

  /// Uninitialised elements with the given extents. They live until the enclosing scope ends. Throws error where
  /// the system has no more memory (memory/buffer.hpp).
  template <class T, class... Extents> view<T, int(sizeof...(Extents))> take(Extents... extents) {
    static_assert(std::is_trivially_destructible_v<T>);
    view<T, int(sizeof...(Extents))> v(nullptr, extents...);
    return {static_cast<T*>(bytes(std::size_t(v.size()) * sizeof(T))), extents...};
  }
  template <class T, class... Extents> view<T, int(sizeof...(Extents))> take_zeroed(Extents... extents) {
    auto v = take<T>(extents...);
    std::fill(v.begin(), v.end(), T{});
    return v;
  }

  /// Gives back, when it is destroyed, all that was taken since.
  class [[nodiscard]] scope_guard {
   public:
    explicit scope_guard(arena& a) : arena_(a), mark_(a.top_) {
      if (a.host_) host_mark_ = a.host_->top_;
    }
    scope_guard(const scope_guard&) = delete;
    ~scope_guard() {
      arena_.top_ = mark_;
      if (arena_.host_) arena_.host_->top_ = host_mark_;
    }

   private:
    arena& arena_;
    position mark_, host_mark_;
  };
  scope_guard scope() { return scope_guard(*this); }

  /// Another one, of the host's own memory, for what no op reads where it stands: records, lists. Where a backend runs
  /// late, what was given back here may still be written to; there nobody but the host writes. Scopes are those of both.
  arena& of_host() {
    if (!host_) host_.reset(new arena(&host_memory));
    return *host_;
  }

  std::size_t used() const { return top_.before + top_.used; }  // bytes, now
  std::size_t high_water() const { return high_water_; }        // bytes, the most there ever were
  std::size_t blocks() const { return blocks_.size(); }         // heap allocations so far

 private:
  void* bytes(std::size_t n) {
    n = (n + alignment - 1) / alignment * alignment;
    while (top_.block < blocks_.size() && top_.used + n > std::size_t(blocks_[top_.block].size())) {
      top_.before += top_.used, top_.below += std::size_t(blocks_[top_.block].size());
      ++top_.block, top_.used = 0;
    }
    if (top_.block == blocks_.size())  // doubling
      blocks_.emplace_back(index_t(std::max({n, first_block, top_.below})), from_ ? *from_ : buffers_from);
    void* p = blocks_[top_.block].data() + top_.used;
    top_.used += n;
    high_water_ = std::max(high_water_, used());
    return p;
  }

  explicit arena(const memory_source* from) : from_(from) {}

  const memory_source* from_ = nullptr;  // null: where buffers are taken from by then
  std::unique_ptr<arena> host_;
  std::vector<buffer<std::byte>> blocks_;
  position top_;
  std::size_t high_water_ = 0;
};
static_assert(Workspace<arena>);

}  // namespace moeskip
