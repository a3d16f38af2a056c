// driver::emulator runs phases on the host, as unkindly as CUDA may:
//   * threads of a block are fibres; each runs until a barrier, in one of three orders
//   * shared memory starts as NaN in every block; a barrier that not all threads reach is an error
//   * nothing is done before settle(): who reads too early reads what was there before
//   * a BLAS, where asked for, refuses leading dimensions that are too small
//   * lists of the host are copied, and given back as soon as they are no longer promised
// For tests of the tests, one barrier of one phase can be left out. It shows errors of logic and of synchronisation
// inside a block; races between blocks and timing it does not show.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "moeskip/backend/cuda/gemm.hpp"
#include "moeskip/base/fibre.hpp"
#include "moeskip/base/lanes.hpp"

namespace moeskip {

/// How the emulator runs phases on this thread.
struct emulation {
  int order = 0;                  // of threads and elements: 0 rising, 1 falling, 2 mixed
  std::string_view without_in{};  // a phase's name: its barrier `without` is left out
  int without = -1;
  index_t grid_blocks = 3;  // that follow a script
  int grid_threads = 128;
  bool gemm = false;                      // dense products of many rows by what stands for a BLAS
  long long gemms = 0;                    // those asked for so far
  long long launches = 0;                 // of phases, and gemms, so far
  long long waits = 0;                    // settle() so far
  std::vector<const void*> prefetched{};  // so far
  std::vector<const void*> brought{};     // where what was brought to the device begins
  static emulation& here() {
    thread_local emulation e;
    return e;
  }
};

namespace detail {

/// The i-th of n in one of three orders.
inline index_t in_order(index_t i, index_t n, int order) {
  if (order == 1) return n - 1 - i;
  return order == 2 ? i * 7919 % n : i;
}
/// Orders that visit everything: 7919 is prime.
inline int order_for(index_t n, int order) { return order == 2 && n % 7919 == 0 ? 1 : order; }

/// The threads of one block.
class team {
 public:
  static constexpr int warp_size = 32;
  static constexpr std::size_t thread_stack = std::size_t{1} << 17;  // AddressSanitizer clears it at every switch
  static constexpr index_t most_shared = 99 * 1024;  // bytes of a block: what compute capability 8.6 has
  static constexpr std::size_t most_exchanged = 24;  // bytes of a thread
  // Shared memory that nobody has written: no number, and as an int -1, an index that stays near.
  static constexpr float untouched = std::bit_cast<float>(~std::uint32_t{0});

  /// One block after the other.
  template <class Phase> void run(const launch_shape& shape, const Phase& phase);
  /// All blocks at once: they may wait for each other.
  template <class Phase> void run_together(const launch_shape& shape, const Phase& phase);

  void wait_for_all(int thread) { wait(thread, state::at_grid, 0); }
  void wait_for_block(int thread, int barrier) { wait(thread, state::at_barrier, barrier); }
  /// The values (32) of the calling thread's warp.
  template <class T> const T* exchange(int thread, const T& value) {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= most_exchanged);
    const int turn = turn_[std::size_t(thread)] ^= 1;
    auto* values = reinterpret_cast<T*>(values_[turn][std::size_t(thread / warp_size)].bytes);
    values[thread % warp_size] = value;
    wait(thread, state::in_warp, 0);
    return values;
  }

 private:
  enum class state { ready, at_barrier, at_grid, in_warp, done };
  struct member {
    state now = state::done;
    int barrier = 0;
    std::unique_ptr<fibre> f;
  };

  void wait(int thread, state why, int barrier) {
    member& m = members_[std::size_t(thread)];
    m.now = why, m.barrier = barrier;
    m.f->pause();
  }
  void prepare(int threads) {
    for (int t = int(members_.size()); t < threads; ++t) {
      members_.emplace_back();
      members_.back().f = std::make_unique<fibre>(
          [this, t] {
            for (;;) {
              job_(t);
              members_[std::size_t(t)].now = state::done;
              members_[std::size_t(t)].f->pause();
            }
          },
          thread_stack);
    }
    for (auto& v : values_) v.resize(std::size_t(threads / warp_size));
    turn_.assign(std::size_t(threads), 0);
  }
  void start(int threads, std::function<void(int)> job) {
    job_ = std::move(job);
    for (int t = 0; t < threads; ++t) members_[std::size_t(t)].now = state::ready;
  }
  template <class F> void unwind_on_failure(F&& f) {
    try {
      f();
    } catch (...) {
      members_.clear();  // unwinds those that wait
      throw;
    }
  }
  void run_block(int first, int threads, const char* phase);
  void run_warp(int first);
  bool all_are(int first, int count, state s) const;
  bool release(int first, int count, state waiting);

  std::deque<member> members_;
  std::function<void(int)> job_;
  struct warp_values {
    alignas(8) std::byte bytes[warp_size * most_exchanged];
  };
  std::vector<warp_values> values_[2];
  std::vector<int> turn_;
};

}  // namespace detail

/// One thread's view of its block, as phases see it; device_block in device_block.cuh has the same members.
class emulated_block : played_warp {
 public:
  /// place: of the thread in its team, which may be that of one block or of all.
  emulated_block(detail::team& t, const launch_shape& shape, index_t block, int place, float* shared, const char* phase)
      : team_(&t),
        blocks_(shape.blocks),
        threads_(shape.threads),
        block_(block),
        place_(place),
        thread_(place % shape.threads),
        shared_(shared),
        without_(emulation::here().without_in == phase ? emulation::here().without : -1) {}
  /// The same thread, doing another phase's work as a thread of another block.
  emulated_block as(index_t block, index_t blocks, float* shared, const char* phase) const {
    return {*team_, {blocks, threads_, 0}, block, place_, shared, phase};
  }

  int thread() const { return thread_; }
  int threads() const { return threads_; }
  index_t block() const { return block_; }
  index_t blocks() const { return blocks_; }
  int lane() const { return thread_ % 32; }
  int warp() const { return thread_ / 32; }
  int warps() const { return threads_ / 32; }
  float* shared() const { return shared_; }

  /// Barriers of a phase are numbered from 0.
  void sync(int barrier) const {
    if (barrier != without_) team_->wait_for_block(place_, barrier);
  }
  /// Of all blocks, which run together: a block says that its work is done, and later waits for the others; where that is
  /// left out, for its own threads alone.
  int arrive_all() const { return 0; }
  void wait_all(int, int barrier) const {
    if (barrier != without_) team_->wait_for_all(place_);
    else team_->wait_for_block(place_, barrier);
  }
  /// Whether this block is the last of `blocks` to come here: it sees what the others wrote before. One thread asks; all
  /// of its block have written by then. The counter is zero before and after.
  bool last_of(index_t blocks, int* counter) const {
    if (++*counter < blocks) return false;
    *counter = 0;
    return true;
  }
  /// The line of memory around p will be read.
  void prefetch(const void* p) const {
    if (!reached_memory::has(p, 1)) fail("prefetch: expected memory that the device sees");
    emulation::here().prefetched.push_back(p);
  }
  /// Over the 32 lanes of a warp, which must all call it; added in the order of a butterfly.
  float warp_sum(float v) const {
    return fold(v, [](float a, float b) { return a + b; });
  }
  double warp_sum(double v) const {
    return fold(v, [](double a, double b) { return a + b; });
  }
  float warp_max(float v) const {
    return fold(v, [](float a, float b) { return a > b ? a : b; });
  }
  /// Who the lanes of this warp are to code that they share.
  warp_lanes lanes() const { return warp_lanes(lane(), this); }
  float warp_at(float v, int lane) const { return team_->exchange(place_, v)[lane]; }
  /// A bit for each lane.
  std::uint32_t warp_which(bool v) const {
    const bool* all = team_->exchange(place_, v);
    std::uint32_t bits = 0;
    for (int i = 0; i < 32; ++i) bits |= std::uint32_t(all[i]) << i;
    return bits;
  }
  /// Which lanes have the same number.
  std::uint32_t warp_same(int v) const {
    const int* all = team_->exchange(place_, v);
    std::uint32_t bits = 0;
    for (int i = 0; i < 32; ++i) bits |= std::uint32_t(all[i] == v) << i;
    return bits;
  }
  /// What the lanes of a warp wrote before, they all see.
  void sync_warp() const { team_->exchange(place_, 0); }
  /// That of lane ^ mask.
  float warp_xor(float v, int mask) const { return team_->exchange(place_, v)[lane() ^ mask]; }
  /// From the rows (16 × 8 numbers in bf16) that lanes 0 to 15 bring: this lane's fragment of a right matrix.
  void load_transposed(std::uint32_t (&b)[2], const std::uint32_t* row) const {
    const std::uint32_t* const* rows = team_->exchange(place_, row);
    const int col = lane() / 4;
    const auto number = [&](int k) { return rows[k][col / 2] >> (col % 2 * 16) & 0xffffu; };
    for (int i = 0; i < 2; ++i) {
      const int k = 8 * i + 2 * (lane() % 4);
      b[i] = number(k) | number(k + 1) << 16;
    }
  }
  /// sum += a b of 16 × 16 and 16 × 8 numbers in bf16, spread over the warp as mma.m16n8k16 has them.
  void multiply_add(float (&sum)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) const {
    struct fragments {
      std::uint32_t a[4], b[2];
    } mine;
    std::copy_n(a, 4, mine.a), std::copy_n(b, 2, mine.b);
    const fragments* all = team_->exchange(place_, mine);
    const auto number = [](std::uint32_t word, int which) {
      return std::bit_cast<float>(which ? word & 0xffff0000u : word << 16);
    };
    for (int v = 0; v < 4; ++v) {
      const int row = lane() / 4, col = 2 * (lane() % 4) + v % 2;  // row: of the half v / 2
      for (int k = 0; k < 16; ++k) {
        const int holder = k % 8 / 2, of_depth = k / 8;
        sum[v] += number(all[4 * row + holder].a[v / 2 + 2 * of_depth], k % 2) *
                  number(all[4 * col + holder].b[of_depth], k % 2);
      }
    }
  }

 private:
  float sum(float v) const override { return warp_sum(v); }
  int most(int v) const override {
    const int* all = team_->exchange(place_, v);
    return *std::max_element(all, all + 32);
  }
  template <class T, class F> T fold(T v, F&& f) const {
    T all[32];
    std::memcpy(all, team_->exchange(place_, v), sizeof all);
    for (int m = 16; m; m /= 2)
      for (int i = 0; i < m; ++i) all[i] = f(all[i], all[i + m]);
    return all[0];
  }

  detail::team* team_;
  index_t blocks_;
  int threads_;
  index_t block_;
  int place_, thread_;
  float* shared_;
  int without_;
};

namespace detail {

inline void expect_launch(const launch_shape& shape, const char* phase) {
  MOESKIP_CHECK(error, shape.threads > 0 && shape.threads % team::warp_size == 0 && shape.threads <= 1024, phase,
                ": expected a multiple of 32 threads up to 1024, got ", shape.threads);
  MOESKIP_CHECK(error, shape.shared * index_t(sizeof(float)) <= team::most_shared, phase, ": expected at most ",
                team::most_shared, " bytes of shared memory, got ", shape.shared * index_t(sizeof(float)));
}

template <class Phase> void team::run(const launch_shape& shape, const Phase& phase) {
  expect_launch(shape, Phase::name);
  std::vector<float> shared(std::size_t(shape.shared));
  prepare(shape.threads);
  for (index_t i = 0; i < shape.blocks; ++i) {
    const index_t block = in_order(i, shape.blocks, order_for(shape.blocks, emulation::here().order));
    std::fill(shared.begin(), shared.end(), untouched);
    start(shape.threads, [&](int thread) {
      emulated_block b(*this, shape, block, thread, shared.data(), Phase::name);
      phase(b);
    });
    unwind_on_failure([&] { run_block(0, shape.threads, Phase::name); });
  }
}

template <class Phase> void team::run_together(const launch_shape& shape, const Phase& phase) {
  expect_launch(shape, Phase::name);
  const int threads = shape.threads, blocks = int(shape.blocks), all = blocks * threads;
  const index_t apart = (shape.shared + 3) / 4 * 4;  // what a block shares begins at a multiple of 16 bytes
  std::vector<float> shared(std::size_t(apart * blocks), untouched);
  prepare(all);
  start(all, [&](int place) {
    emulated_block b(*this, shape, place / threads, place, shared.data() + place / threads * apart, Phase::name);
    phase(b);
  });
  unwind_on_failure([&] {
    for (;;) {
      for (int i = 0; i < blocks; ++i)
        run_block(int(in_order(i, blocks, emulation::here().order)) * threads, threads, Phase::name);
      if (all_are(0, all, state::done)) return;
      if (!release(0, all, state::at_grid))
        fail("the blocks of ", Phase::name, " wait for each other, and some have ended");
    }
  });
}

/// Until its threads are done or wait for other blocks. Warps run as far ahead of each other as barriers let them.
inline void team::run_block(int first, int threads, const char* phase) {
  const int warps = threads / warp_size;
  for (;;) {
    for (int w = 0; w < warps; ++w) run_warp(first + int(in_order(w, warps, emulation::here().order)) * warp_size);
    if (all_are(first, threads, state::done) || all_are(first, threads, state::at_grid)) return;
    if (!release(first, threads, state::at_barrier))
      fail("the threads of a block of ", phase, " wait at different barriers, or some have ended");
  }
}

inline bool team::all_are(int first, int count, state s) const {
  for (int t = first; t < first + count; ++t)
    if (members_[std::size_t(t)].now != s) return false;
  return true;
}

/// Until its threads wait for others than each other, or have ended.
inline void team::run_warp(int first) {
  do {
    int waiting = 0;
    for (int i = 0; i < warp_size; ++i) {
      member& m = members_[std::size_t(first + in_order(i, warp_size, emulation::here().order))];
      if (m.now == state::ready) m.f->resume();
      waiting += m.now == state::in_warp;
    }
    if (waiting == 0) return;
  } while (release(first, warp_size, state::in_warp));
  fail("the threads of a warp wait for each other, but not all of them");
}

/// Lets threads [first, first + count) go on if all of them wait there, at the same barrier.
inline bool team::release(int first, int count, state waiting) {
  const auto at = [&](int t) -> member& { return members_[std::size_t(t)]; };
  for (int t = first; t < first + count; ++t)
    if (at(t).now != waiting || at(t).barrier != at(first).barrier) return false;
  for (int t = first; t < first + count; ++t) at(t).now = state::ready;
  return true;
}

/// What was asked for on this thread and not done yet.
struct emulated_stream {
  std::vector<std::function<void()>> asked;
  std::deque<std::vector<char>> lists;
  arena scratch;
  counters_of_blocks counters;
  team threads;
  static emulated_stream& here() {
    thread_local emulated_stream s;
    return s;
  }
};

/// A product in the order of its definition, with factors of X.
template <class X> void multiply_by_columns(const gemm_call& g) {
  const auto at = [](const gemm_factor& f, index_t i, index_t j) {
    return to<float>(static_cast<const X*>(f.data)[f.transposed ? j + i * f.leading : i + j * f.leading]);
  };
  for (index_t j = 0; j < g.n; ++j)
    for (index_t i = 0; i < g.m; ++i) {
      float sum = 0;
      for (index_t k = 0; k < g.k; ++k) sum += at(g.a, i, k) * at(g.b, k, j);
      float& c = g.c[i + j * g.m];
      c = g.adds ? c + sum : sum;
    }
}

}  // namespace detail

namespace driver {

struct emulator {
  static constexpr const char *name = "emulated_cuda", *blas = "plain loops";
  static constexpr index_t logits_at_once = index_t{1} << 20;

  static void start() {
    buffers_from = {[](std::size_t bytes, std::size_t align) {
                      void* p = host_memory.take(bytes, align);
                      reached_memory::add(p, bytes);
                      return p;
                    },
                    [](void* p, std::size_t bytes, std::size_t align) {
                      reached_memory::remove(p);
                      host_memory.give(p, bytes, align);
                    }};
  }
  template <class Phase> static void each(index_t n, const Phase& phase) {
    detail::emulated_stream::here().asked.push_back([n, phase] {
      const int order = detail::order_for(n, emulation::here().order);
      for (index_t i = 0; i < n; ++i) phase(detail::in_order(i, n, order));
    });
  }
  template <class Phase> static void launch(const launch_shape& shape, const Phase& phase) {
    auto& stream = detail::emulated_stream::here();
    stream.asked.push_back([&stream, shape, phase] { stream.threads.run(shape, phase); });
  }
  /// A script, by a few small blocks.
  template <class Follow> static void follow(index_t shared, const Follow& phase) {
    auto& stream = detail::emulated_stream::here();
    const launch_shape shape{emulation::here().grid_blocks, emulation::here().grid_threads, shared};
    stream.asked.push_back([&stream, shape, phase] { stream.threads.run_together(shape, phase); });
  }
  static bool has_gemm() { return emulation::here().gemm; }
  static void gemm(const gemm_call& g) {
    MOESKIP_CHECK(error, g.a.leading >= (g.a.transposed ? g.k : g.m) && g.b.leading >= (g.b.transposed ? g.n : g.k),
                  "gemm of ", g.m, ", ", g.n, ", ", g.k, ": a leading dimension is too small, got ", g.a.leading,
                  " and ", g.b.leading);
    ++emulation::here().gemms;
    detail::emulated_stream::here().asked.push_back(
        [g] { g.in_bf16 ? detail::multiply_by_columns<bf16>(g) : detail::multiply_by_columns<float>(g); });
  }
  /// Throws what a phase threw; what was asked for after it is forgotten.
  static void settle() {
    ++emulation::here().waits;
    auto& stream = detail::emulated_stream::here();
    const auto asked = std::exchange(stream.asked, {});
    const auto lists = std::exchange(stream.lists, {});
    try {
      for (const auto& work : asked) {
        ++emulation::here().launches, work();
        if (!stream.counters.clear()) fail("a phase left blocks uncounted: not all of them came, or some twice");
      }
    } catch (...) {
      stream.counters.clear();
      throw;
    }
  }
  static void forget() {
    auto& stream = detail::emulated_stream::here();
    stream.asked.clear(), stream.lists.clear(), stream.counters.clear();
  }
  static void bring(const void* p, std::size_t) { emulation::here().brought.push_back(p); }
  static const void* list(const void* p, std::size_t bytes) {
    if (!p) return nullptr;
    const auto* first = static_cast<const char*>(p);
    return detail::emulated_stream::here().lists.emplace_back(first, first + bytes).data();
  }
  static arena& scratch() { return detail::emulated_stream::here().scratch; }
  static int* counters(index_t n) { return detail::emulated_stream::here().counters.take(n); }
};

}  // namespace driver

template <Storage W = float, Storage Product = W> using emulated_cuda = cuda<W, driver::emulator, Product>;

}  // namespace moeskip
