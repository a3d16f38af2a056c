// A script whose phases show, by the numbers that they leave, in which order they were done.
#pragma once

#include <vector>

#include "moeskip/cuda.hpp"
#include "tiny.hpp"

namespace tests {

/// out = in turned around, and one more: who reads needs what another block wrote.
struct turn_around {
  static constexpr const char* name = "turn_around";
  ms::vec<int> out;
  ms::vec<const int> in;
  void operator()(ms::index_t i) const { out[i] = in[in.size() - 1 - i] + 1; }
};
/// Adds to each number of a block of 128 that of the block's next thread; more blocks than a grid has.
struct add_neighbour {
  static constexpr const char* name = "add_neighbour";
  static constexpr int barriers = 1;
  ms::vec<int> numbers;
  template <class Block> void operator()(const Block& b) const {
    int* shared = reinterpret_cast<int*>(b.shared());
    int& mine = numbers[b.block() * 128 + b.thread()];
    shared[b.thread()] = mine;
    b.sync(0);
    mine += shared[(b.thread() + 1) % b.threads()];
  }
};
/// Goes on until it has been asked so often.
struct count_down {
  static constexpr const char* name = "count_down";
  ms::vec<int> left;
  void operator()(ms::index_t) const { --left[0]; }
};
struct some_phases {
  using elements = ms::phase_list<turn_around, count_down>;
  using blocks = ms::phase_list<add_neighbour>;
};

inline constexpr int script_size = 128 * 7, script_times = 3;
inline int script_number(int i) { return i * i % 1000; }

/// What a script leaves that turns numbers around, adds neighbours and turns them back, and that a few times: in a loop
/// or, as blocks that do not wait for each other would never see a loop's end, written so often.
inline std::vector<int> followed(bool loops) {
  using B = ms::emulated_cuda<float>;
  using call = ms::detail::device_call<ms::linear_t, B>;
  constexpr int n = script_size;
  B b;
  ms::arena memory;
  const auto x = memory.take<int>(n), y = memory.take<int>(n), left = memory.take<int>(1);
  for (int i = 0; i < n; ++i) x[i] = script_number(i);
  left[0] = script_times;
  ms::script<ms::driver::emulator, some_phases> script;
  {
    const auto open = script.write();
    const auto over = script.jump(nullptr);
    call::each(n, turn_around{x, y});  // jumped over
    script.land(over);
    const auto begin = script.here();
    for (int time = 0; time < (loops ? 1 : script_times); ++time) {
      call::each(n, turn_around{y, x});
      call::launch({7, 128, 128}, add_neighbour{y});
      call::each(n, turn_around{x, y});
      call::each(1, count_down{left});
    }
    if (loops) script.jump(left.data(), int(begin));
  }
  script.run();
  MOESKIP_CHECK(ms::error, left[0] == script_times, "a script did something before settle()");
  ms::settle(b);
  return std::vector<int>(x.begin(), x.end());
}

/// The same without phases.
inline std::vector<int> followed_by_hand() {
  constexpr std::size_t n = script_size;
  std::vector<int> x(n), y(n);
  for (std::size_t i = 0; i < n; ++i) x[i] = script_number(int(i));
  for (int time = 0; time < script_times; ++time) {
    for (std::size_t i = 0; i < n; ++i) y[i] = x[n - 1 - i] + 1;
    const auto before = y;
    for (std::size_t i = 0; i < n; ++i) y[i] += before[i / 128 * 128 + (i + 1) % 128];
    for (std::size_t i = 0; i < n; ++i) x[i] = y[n - 1 - i] + 1;
  }
  return x;
}

}  // namespace tests
