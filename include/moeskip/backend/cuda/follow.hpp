// The kernel that follows a script (script.hpp): all blocks take its steps together. A step stands in for the launch of
// its phase; the blocks that it would have had are done by those that there are. The next step is fetched into shared
// memory while a block waits for the others, so that its arguments are at hand when they go on.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <vector>

#include "moeskip/backend/cuda/backend.hpp"

namespace moeskip {

template <class... Phases> struct phase_list {};

namespace phase {

/// A warp as a block of its own.
template <class Block> struct lone_warp : Block {
  MOESKIP_HD explicit lone_warp(const Block& b) : Block(b) {}
  MOESKIP_HD int thread() const { return Block::lane(); }
  MOESKIP_HD static int threads() { return 32; }
  MOESKIP_HD static int warp() { return 0; }
  MOESKIP_HD static int warps() { return 1; }
};

/// Elements: phases of numbers made by themselves; Blocks: of threads that work together.
template <class Elements, class Blocks> struct follow;

template <class... Each, class... Together> struct follow<phase_list<Each...>, phase_list<Together...>> {
  static constexpr const char* name = "follow";
  static constexpr int threads = 384, blocks_at_once = 1, barriers = 3;
  static constexpr std::size_t largest = std::max({sizeof(Each)..., sizeof(Together)...});
  struct alignas(16) record {
    script_step step;
    alignas(16) std::byte phase[largest];
    template <class Phase> MOESKIP_HD const Phase& as() const { return *reinterpret_cast<const Phase*>(phase); }
  };
  static_assert(offsetof(record, phase) == sizeof(script_step), "the host copies phases to behind their steps");
  static constexpr int record_floats = sizeof(record) / sizeof(float);

  const record* records;
  int count;

  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    auto* fetched = reinterpret_cast<record*>(b.shared());  // two: that of now, and the next one
    int at = 0;
    fetch(b, fetched[0], at);
    b.sync(0);
    for (int turn = 0; at < count; turn ^= 1) {
      const record& now = fetched[turn];
      if (now.step.over == script_step::kind::jump) {
        at = !now.step.flag || *now.step.flag ? now.step.target : at + 1;
      } else {
        take<0, Each...>(b, now);
        ++at;
      }
      const auto arrived = b.arrive_all();
      fetch(b, fetched[turn ^ 1], at);  // while others are still at work
      b.wait_all(arrived, 1);
    }
  }

 private:
  /// The step that comes next, and a line of weights for each thread of all blocks: about what memory delivers while
  /// blocks wait for each other.
  template <class Block> [[gnu::noinline]] MOESKIP_HD void fetch(const Block& b, record& to, int at) const {
    if (at >= count) return;
    for (int i = b.thread(); i < record_floats; i += b.threads())
      reinterpret_cast<int*>(&to)[i] = reinterpret_cast<const int*>(records + at)[i];
    constexpr index_t line = 128;  // bytes
    const script_step& next = records[at].step;
    const index_t lines = b.blocks() * b.threads(), own = b.block() * b.threads() + b.thread();
    if (const index_t from = (next.begun ? lines + own : own) * line; from < next.soon_bytes)
      b.prefetch(static_cast<const std::byte*>(next.soon) + from);
  }

  template <int Number, class First, class... Others, class Block>
  MOESKIP_HD static void take(const Block& b, const record& r) {
    if (r.step.phase == Number) elements<First>(b, r);
    else if constexpr (sizeof...(Others) > 0) take<Number + 1, Others...>(b, r);
    else take_together<Number + 1, Together...>(b, r);
  }
  template <int Number, class First, class... Others, class Block>
  MOESKIP_HD static void take_together(const Block& b, const record& r) {
    if (r.step.phase == Number) blocks<First>(b, r);
    else if constexpr (sizeof...(Others) > 0) take_together<Number + 1, Others...>(b, r);
  }

  // Functions of their own: registers are given out for one phase, not for all of them woven together. Arguments stay in
  // shared memory for the same reason. With 512 threads the largest phase would spill.
  template <class Phase, class Block>
  [[gnu::noinline]] MOESKIP_HD static void elements(const Block& b, const record& r) {
    const Phase& phase = r.template as<Phase>();
    for (index_t i = b.block() * b.threads() + b.thread(); i < r.step.count; i += b.blocks() * b.threads()) phase(i);
  }
  template <class Phase, class Block> [[gnu::noinline]] MOESKIP_HD static void blocks(const Block& b, const record& r) {
    const Phase& phase = r.template as<Phase>();
    const script_step& s = r.step;
    float* const shared = b.shared() + 2 * record_floats;
    if constexpr (warps_are_alone<Phase>) {  // spread over all multiprocessors, and none waits for another
      for (index_t i = b.warp() * b.blocks() + b.block(); i < s.count; i += b.warps() * b.blocks())
        phase(lone_warp<Block>(b.as(i, s.count, shared, Phase::name)));
    } else {
      const index_t count = s.over == script_step::kind::grid ? b.blocks() : s.count;
      for (index_t v = b.block(); v < count; v += b.blocks()) {
        phase(b.as(v, count, shared, Phase::name));
        b.sync(2);  // what they share is taken again
      }
    }
  }
};

}  // namespace phase

/// A script of phases in List (Elements and Blocks), followed by Driver.
template <class Driver, class List> class script : public script_steps {
 public:
  using follow = phase::follow<typename List::elements, typename List::blocks>;

  script() : script_steps(keys(typename List::elements{}, typename List::blocks{}), sizeof(typename follow::record)) {}

  /// While it lives, what ops ask for on this thread becomes steps.
  class [[nodiscard]] opening {
   public:
    explicit opening(script_steps& s) {
      MOESKIP_CHECK(error, !opened(), "a script is open on this thread already");
      opened() = &s;
    }
    opening(const opening&) = delete;
    ~opening() { opened() = nullptr; }
  };
  opening write() { return opening(*this); }

  /// Where the next step will be.
  index_t here() const { return index_t(records_.size()); }
  /// Goes to a step where *flag, which the device sees, is not 0; always where it is null. Returns the jump.
  index_t jump(const int* flag, int target = 0) {
    add({script_step::kind::jump, -1, 0, flag, target}, nullptr, 0);
    return here() - 1;
  }
  /// An earlier jump goes to what comes next.
  void land(index_t jump) {
    amend(jump, [&](script_step& s) { s.target = int(here()); });
  }

  /// From the first step to where the last one leads; settle() waits.
  void run() {
    if (std::exchange(changed_, false)) {
      steps_ = buffer<typename follow::record>(here());
      for (index_t i = 0; i < here(); ++i)
        std::memcpy(&steps_[i], records_[std::size_t(i)].data(), records_[std::size_t(i)].size());
    }
    Driver::follow(2 * follow::record_floats + shared_, follow{steps_.data(), int(here())});
  }

 private:
  template <class... Each, class... Together>
  static std::vector<const char*> keys(phase_list<Each...>, phase_list<Together...>) {
    return {&key<Each>..., &key<Together>...};
  }
  buffer<typename follow::record> steps_;
};

}  // namespace moeskip
