// What the layers of a model remember of the tokens seen so far: keys, values, and where the router asks experts.
#pragma once

#include "moeskip/memory/arena.hpp"
#include "moeskip/memory/buffer.hpp"
#include "moeskip/tensor/rows.hpp"

namespace moeskip {

/// Room for S sequences of at most C tokens. Layers may run ahead of each other (a draft fills the lower ones only):
/// what counts as valid is decided by whoever decodes; truncating is forgetting, since later writes overwrite.
template <class T> class kv_cache {
 public:
  /// remembered: experts of each token that are kept; 0 unless the router follows its predecessor.
  kv_cache(int layers, int slots, int capacity, int kv_dim, int remembered = 0)
      : slots_(slots),
        capacity_(capacity),
        kv_dim_(kv_dim),
        experts_(remembered),
        plane_(index_t(slots) * capacity * kv_dim),
        data_(2 * plane_ * layers),
        chosen_(index_t(slots) * capacity * remembered * layers) {}

  kv_layer<T> layer(int l) {
    T* keys = data_.data() + 2 * plane_ * l;
    int* chosen = experts_ ? chosen_.data() + index_t(slots_) * capacity_ * experts_ * l : nullptr;
    return {{keys, slots_, capacity_, kv_dim_},
            {keys + plane_, slots_, capacity_, kv_dim_},
            {chosen, experts_ ? slots_ : 0, capacity_, experts_}};
  }
  int capacity() const { return capacity_; }  // tokens per slot

 private:
  int slots_, capacity_, kv_dim_, experts_;
  index_t plane_;  // elements of one layer's keys
  buffer<T> data_;
  buffer<int> chosen_;
};

/// The same interface for a training step: keys and values live on the tape's memory, where backward finds them.
template <class T> class kv_on_arena {
 public:
  kv_on_arena(arena& memory, int slots, int capacity, int kv_dim)
      : memory_(memory), slots_(slots), capacity_(capacity), kv_dim_(kv_dim) {}
  kv_layer<T> layer(int) {
    return {memory_.take<T>(slots_, capacity_, kv_dim_), memory_.take<T>(slots_, capacity_, kv_dim_)};
  }

 private:
  arena& memory_;
  int slots_, capacity_, kv_dim_;
};

}  // namespace moeskip
