// A script: phases with their arguments, kept when ops ask for them, to be followed many times by one kernel whose
// blocks stay on the device and wait for each other after each of them; and jumps, which look at what phases wrote. A
// loop of decoding is a script, so no host stands between its tokens. follow.hpp has the kernel.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <deque>
#include <type_traits>
#include <utility>
#include <vector>

#include "moeskip/base/check.hpp"
#include "moeskip/memory/arena.hpp"
#include "moeskip/memory/buffer.hpp"

namespace moeskip {

/// Blocks, threads of each (a multiple of 32), and the floats that they share.
struct launch_shape {
  index_t blocks = 0;
  int threads = 0;
  index_t shared = 0;
  index_t warps = 0;  // where not 0: any number of threads do that make up so many warps in all
};

/// Phases of blocks without barriers: each warp does what no other needs.
template <class Phase> inline constexpr bool warps_are_alone = !requires { Phase::barriers; };

/// What a driver gives out as counters of blocks.
class counters_of_blocks {
 public:
  int* take(index_t n) {
    if (all_.empty() || all_.back().size() < n) all_.emplace_back(std::max<index_t>(n, 1024));  // zeros
    return all_.back().data();
  }
  /// Zeros again, after phases that were not done to their end. Returns whether they were.
  bool clear() {
    bool zeros = true;
    for (auto& some : all_)
      for (int& count : some.view()) zeros &= std::exchange(count, 0) == 0;
    return zeros;
  }

 private:
  std::deque<buffer<int>> all_;  // the smaller ones are still known to phases
};

/// What all of a grid's blocks do next.
struct script_step {
  enum class kind : int { elements, warps, blocks, grid, jump };  // what is counted; grid: each block once
  kind over;
  int phase;  // its number among those that a script may have
  index_t count;
  const int* flag = nullptr;  // of a jump: taken where it is not 0; null: always
  int target = 0;
  bool begun = false;  // the step before has asked for the first of the weights
  // Weights that blocks ask for while they wait for the step to begin: its own, or the next one's.
  const void* soon = nullptr;
  index_t soon_bytes = 0;
};

/// The steps of one script, and the memory that they need. Ops of its thread add to the one that is open.
class script_steps {
 public:
  script_steps(const script_steps&) = delete;

  /// The one that is open on this thread, or null.
  static script_steps* open() { return opened(); }

  template <class Phase> void elements(index_t n, const Phase& phase) {
    add({script_step::kind::elements, number_of<Phase>(), n}, phase);
  }
  template <class Phase> void launch(const launch_shape& shape, const Phase& phase) {
    constexpr bool strides = requires { Phase::strides; };  // any number of blocks will do
    using kind = script_step::kind;
    const kind over = warps_are_alone<Phase> ? kind::warps : strides ? kind::grid : kind::blocks;
    MOESKIP_CHECK(error, over != kind::warps || shape.warps > 0, Phase::name,
                  ": its warps share nothing, so its launch must say how many there are");
    script_step step{over, number_of<Phase>(), over == kind::warps ? shape.warps : shape.blocks};
    if constexpr (requires { phase.first_weights(); }) {
      const auto weights = phase.first_weights();
      step.soon = weights.data(), step.soon_bytes = weights.size() * index_t(sizeof *weights.data());
      step.begun = memory_idles_;
      if (memory_idles_)  // the phase before this one reads little: its blocks may as well ask for what comes then
        amend(index_t(records_.size()) - 1,
              [&](script_step& before) { before.soon = step.soon, before.soon_bytes = step.soon_bytes; });
    }
    add(step, phase);
    memory_idles_ = requires { Phase::memory_idles; };
    shared_ = std::max(shared_, shape.shared);
  }
  /// A list that the device sees is used where it stands; another one is copied.
  const void* list(const void* p, std::size_t bytes, bool seen) {
    if (!p || !bytes || seen) return p;
    void* copy = lists_.take<std::byte>(index_t(bytes)).data();
    return std::memcpy(copy, p, bytes);
  }
  /// Where visits of experts are counted, each layer's of each call; null: nowhere.
  int* visits = nullptr;
  /// Becomes growth::bad_choice() of an expert that does not exist, or that a router chooses twice; null: nobody looks.
  int* bad_choices = nullptr;
  arena& scratch() { return scratch_; }
  /// Whether all blocks were counted; zeros again.
  bool clear_counters() { return counters_.clear(); }
  int* counters(index_t n) { return counters_.take(n); }

 protected:
  /// Phases are told apart by these; the number of one is its place.
  script_steps(std::vector<const char*> known, std::size_t record) : known_(std::move(known)), record_(record) {}
  template <class Phase> static inline const char key = 0;  // its address names the type

  static script_steps*& opened() {
    thread_local script_steps* now = nullptr;
    return now;
  }
  void add(const script_step& step, const void* phase, std::size_t bytes) {
    changed_ = true, memory_idles_ = false;
    std::vector<std::byte>& r = records_.emplace_back(record_);
    std::memcpy(r.data(), &step, sizeof step);
    if (bytes) std::memcpy(r.data() + sizeof step, phase, bytes);
  }
  /// Changes step `at`.
  template <class F> void amend(index_t at, F&& f) {
    changed_ = true;
    std::byte* record = records_[std::size_t(at)].data();
    script_step step;
    std::memcpy(&step, record, sizeof step);
    f(step);
    std::memcpy(record, &step, sizeof step);
  }

  std::vector<std::vector<std::byte>> records_;  // a step, and behind it its phase
  index_t shared_ = 0;                           // floats that a block needs at most
  bool changed_ = false;                         // since it was last run

 private:
  template <class Phase> void add(const script_step& step, const Phase& phase) {
    static_assert(std::is_trivially_copyable_v<Phase>);
    add(step, &phase, sizeof phase);
  }
  template <class Phase> int number_of() const {
    const auto found = std::find(known_.begin(), known_.end(), &key<Phase>);
    MOESKIP_CHECK(config_error, found != known_.end(), "a loop on the device has no ", Phase::name,
                  ": it has what models of the library do for few rows (backend/cuda/program.hpp)");
    return int(found - known_.begin());
  }

  std::vector<const char*> known_;
  std::size_t record_;         // bytes
  bool memory_idles_ = false;  // during the step added last
  arena scratch_, lists_;
  counters_of_blocks counters_;
};

}  // namespace moeskip
