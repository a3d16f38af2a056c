// What this machine can do, measured in the same program: the best streaming read, and the peak of multiply-adds.
// Opt-in: brings the kernels.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "moeskip/backend/cpu/panels.hpp"
#include "moeskip/base/parallel.hpp"
#include "moeskip/eval/roofline.hpp"

namespace moeskip {

namespace detail {

template <class Work> double seconds_of(Work&& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace detail

/// Reads [data, data + bytes) once on all threads: each thread its share, as four streams with software
/// prefetch, one cache line of each in turn. The fastest of several ways tried on the development machine.
inline float stream_read(const std::byte* data, std::size_t bytes) {
  constexpr index_t streams = 4, line = 64, ahead = 2048;  // bytes
  constexpr index_t lane_bytes = 4 * simd::width<simd::native_arch>;
  std::vector<float> sums(std::size_t(thread_count()) * 16);
  parallel([&](int thread, int threads) {
    const range mine = share(index_t(bytes), thread, threads, streams * line);
    const index_t part = (mine.last - mine.first) / streams / line * line;
    const char* p = reinterpret_cast<const char*>(data) + mine.first;
    simd::lanes<simd::native_arch> sum[streams] = {simd::zero<simd::native_arch>(), simd::zero<simd::native_arch>(),
                                                   simd::zero<simd::native_arch>(), simd::zero<simd::native_arch>()};
    for (index_t i = 0; i < part; i += line)
      for (index_t s = 0; s < streams; ++s) {
        simd::prefetch<simd::cache::second>(p + s * part + i, ahead);
        for (index_t b = 0; b < line; b += lane_bytes)
          sum[s] = simd::max<simd::native_arch>(
              sum[s], simd::load<simd::native_arch>(reinterpret_cast<const float*>(p + s * part + i + b)));
      }
    sums[std::size_t(thread) * 16] = simd::reduce_max<simd::native_arch>(simd::max<simd::native_arch>(
        simd::max<simd::native_arch>(sum[0], sum[1]), simd::max<simd::native_arch>(sum[2], sum[3])));
  });
  return *std::max_element(sums.begin(), sums.end());
}

/// FLOP/s of independent multiply-adds in registers, of factors of type P into sums in f32, on all threads.
template <class P = float> double product_peak() {
  using cell = cpu_kernels::detail::cell<simd::native_arch, P>;
  constexpr int chains = 12;
  constexpr long rounds = 1'000'000;
  double best = 0;
  for (int repeat = 0; repeat < 5; ++repeat) {
    const double time = detail::seconds_of([] {
      parallel([](int, int) {
        typename cell::vector a(typename cell::type(1)), b(typename cell::type(2));
        simd::lanes<simd::native_arch> sum[chains];
        simd::hold(a), simd::hold(b);
        // All loops over the chains unroll, or the sums would live in memory.
#pragma GCC unroll 12
        for (int c = 0; c < chains; ++c) sum[c] = simd::lanes<simd::native_arch>(1.f);
        for (long i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
          for (int c = 0; c < chains; ++c) sum[c] = cell::multiply_add(a, b, sum[c]), simd::hold(sum[c]);
        }
        volatile float keep = 0;
#pragma GCC unroll 12
        for (int c = 0; c < chains; ++c) keep = keep + simd::reduce_add<simd::native_arch>(sum[c]);
      });
    });
    const double products = double(chains * cell::terms) * double(simd::width<simd::native_arch>) * rounds;
    best = std::max(best, 2 * products * thread_count() / time);
  }
  return best;
}

/// What a decoder that reads `block`, a model's weights, can hope for: the best of some reads of all of it. A block
/// under a megabyte is read as if it were one: the start of threads would be all that is measured. Takes about a
/// quarter of a second, or seven reads where they take longer.
inline machine_limits measure_limits(std::span<const std::byte> block) {
  constexpr int least = 7;
  std::vector<std::byte> larger(block.size() < (1u << 20) ? 1u << 20 : 0);
  if (!larger.empty()) block = larger;
  machine_limits limits{.peak = product_peak()};
  double spent = 0;
  for (int i = 0; i < least || (spent < 0.2 && i < 100000); ++i) {
    const double seconds = detail::seconds_of([&] { stream_read(block.data(), block.size()); });
    spent += seconds;
    if (seconds > 0) limits.read = std::max(limits.read, double(block.size()) / seconds);
  }
  return limits;
}

}  // namespace moeskip
