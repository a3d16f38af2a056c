// Reads 8 GiB of plain device memory, far more than any L2 holds, by as many blocks as the card holds at once. A thread
// asks for several packs of 16 bytes before it uses the first. How many are best differs between cards, so some are
// tried and the fastest median counts: a ceiling is what can be reached.
#include "read_rate.hpp"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <vector>

#include "moeskip/base/check.hpp"

namespace {

constexpr int threads = 512;
constexpr std::size_t packs = (std::size_t{8} << 30) / sizeof(uint4);

void expect(cudaError_t code, const char* call) {
  MOESKIP_CHECK(moeskip::error, code == cudaSuccess, "read_rate: ", call, ": expected success, got ",
                cudaGetErrorName(code), ": ", cudaGetErrorString(code));
}

/// Numbers that nothing could compress.
__global__ void fill(uint4* to) {
  const std::size_t step = std::size_t(gridDim.x) * blockDim.x;
  for (std::size_t i = std::size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < packs; i += step) {
    unsigned x = unsigned(i) * 2654435761u + unsigned(i >> 32);
    const auto next = [&] { return x ^= x << 13, x ^= x >> 17, x ^= x << 5; };
    to[i] = {next(), next(), next(), next()};
  }
}

/// Rounds of `Ahead` packs a thread, neighbours side by side.
template <int Ahead> __global__ void __launch_bounds__(threads)
    read(const uint4* from, std::size_t rounds, unsigned* out) {
  const std::size_t step = std::size_t(gridDim.x) * threads;
  from += std::size_t(blockIdx.x) * threads + threadIdx.x;
  unsigned sum = 0;
  for (std::size_t r = 0; r < rounds; ++r, from += Ahead * step) {
    uint4 got[Ahead];
#pragma unroll
    for (int j = 0; j < Ahead; ++j) got[j] = __ldcs(from + j * step);
#pragma unroll
    for (int j = 0; j < Ahead; ++j) sum += got[j].x ^ got[j].y ^ got[j].z ^ got[j].w;
  }
  if (sum == 0x5eed5eed) *out = sum;  // hardly ever, but the compiler does not know
}

struct event {
  cudaEvent_t e{};
  event() { expect(cudaEventCreate(&e), "cudaEventCreate"); }
  ~event() { cudaEventDestroy(e); }
};

template <int Ahead> double rate_of(const uint4* from, unsigned* out) {
  int device = 0, processors = 0, fit = 0;
  expect(cudaGetDevice(&device), "cudaGetDevice");
  expect(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  expect(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&fit, read<Ahead>, threads, 0), "occupancy");
  const std::size_t of_round = std::size_t(processors) * fit * threads * Ahead, rounds = packs / of_round;
  const event begin, end;
  std::vector<float> times;
  for (int i = 0; i < 18; ++i) {
    float ms = 0;
    expect(cudaEventRecord(begin.e), "cudaEventRecord");
    read<Ahead><<<unsigned(processors * fit), threads>>>(from, rounds, out);
    expect(cudaGetLastError(), "kernel launch");
    expect(cudaEventRecord(end.e), "cudaEventRecord");
    expect(cudaEventSynchronize(end.e), "cudaEventSynchronize");
    expect(cudaEventElapsedTime(&ms, begin.e, end.e), "cudaEventElapsedTime");
    if (i >= 3) times.push_back(ms);  // clocks have risen
  }
  std::nth_element(times.begin(), times.begin() + std::ptrdiff_t(times.size() / 2), times.end());
  return double(rounds * of_round * sizeof(uint4)) / (double(times[times.size() / 2]) / 1e3);
}

struct device_memory {
  void* p = nullptr;
  explicit device_memory(std::size_t bytes) { expect(cudaMalloc(&p, bytes), "cudaMalloc"); }
  ~device_memory() { cudaFree(p); }
};

}  // namespace

double bench::read_rate() {
  const device_memory numbers(packs * sizeof(uint4)), sink(sizeof(unsigned));
  auto* first = static_cast<uint4*>(numbers.p);
  auto* out = static_cast<unsigned*>(sink.p);
  fill<<<4096, threads>>>(first);
  expect(cudaGetLastError(), "kernel launch");
  return std::max({rate_of<2>(first, out), rate_of<4>(first, out), rate_of<8>(first, out)});
}
