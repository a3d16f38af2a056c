// What this machine can do, measured in the same program: the best streaming read, and the peak of
// multiply-adds.
#pragma once

#include <cstdint>

#include "measure.hpp"
#include "moeskip/backend/cpu/panels.hpp"

namespace bench {

namespace simd = moeskip::simd;
using arch = simd::native_arch;

/// Reads [data, data + bytes) once on all threads: each thread its share, as four streams with software
/// prefetch, one cache line of each in turn. The fastest of several ways tried on the development machine.
inline float stream_read(const std::byte* data, std::size_t bytes) {
  constexpr moeskip::index_t streams = 4, line = 64, ahead = 2048;  // bytes
  constexpr moeskip::index_t lane_bytes = 4 * simd::width<arch>;
  std::vector<float> sums(std::size_t(moeskip::thread_count()) * 16);
  moeskip::parallel([&](int thread, int threads) {
    const moeskip::range mine = moeskip::share(moeskip::index_t(bytes), thread, threads, streams * line);
    const moeskip::index_t part = (mine.last - mine.first) / streams / line * line;
    const char* p = reinterpret_cast<const char*>(data) + mine.first;
    simd::lanes<arch> sum[streams] = {simd::zero<arch>(), simd::zero<arch>(), simd::zero<arch>(), simd::zero<arch>()};
    for (moeskip::index_t i = 0; i < part; i += line)
      for (moeskip::index_t s = 0; s < streams; ++s) {
        simd::prefetch(p + s * part + i, ahead);
        for (moeskip::index_t b = 0; b < line; b += lane_bytes)
          sum[s] = simd::max<arch>(sum[s], simd::load<arch>(reinterpret_cast<const float*>(p + s * part + i + b)));
      }
    sums[std::size_t(thread) * 16] =
        simd::reduce_max<arch>(simd::max<arch>(simd::max<arch>(sum[0], sum[1]), simd::max<arch>(sum[2], sum[3])));
  });
  return *std::max_element(sums.begin(), sums.end());
}

/// FLOP/s of independent multiply-adds in registers, of factors of type P into sums in f32, on all threads.
template <class P = float> double product_peak() {
  using cell = moeskip::cpu_kernels::detail::cell<arch, P>;
  constexpr int chains = 12;
  constexpr long rounds = 1'000'000;
  double best = 0;
  for (int repeat = 0; repeat < 5; ++repeat) {
    const double time = time_of([] {
      moeskip::parallel([](int, int) {
        typename cell::vector a(typename cell::type(1)), b(typename cell::type(2));
        simd::lanes<arch> sum[chains];
        simd::hold(a), simd::hold(b);
        // All loops over the chains unroll, or the sums would live in memory.
#pragma GCC unroll 12
        for (int c = 0; c < chains; ++c) sum[c] = simd::lanes<arch>(1.f);
        for (long i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
          for (int c = 0; c < chains; ++c) sum[c] = cell::multiply_add(a, b, sum[c]), simd::hold(sum[c]);
        }
        volatile float keep = 0;
#pragma GCC unroll 12
        for (int c = 0; c < chains; ++c) keep = keep + simd::reduce_add<arch>(sum[c]);
      });
    });
    const double products = double(chains * cell::terms) * double(simd::width<arch>) * rounds;
    best = std::max(best, 2 * products * moeskip::thread_count() / time);
  }
  return best;
}

}  // namespace bench
