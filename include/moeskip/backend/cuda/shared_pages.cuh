// Memory of buffers that a GPU sees. nvcc alone reads this (cuda.cuh).
#pragma once

#include <atomic>
#include <cstddef>
#include <new>

#include "moeskip/backend/cuda/device_error.cuh"
#include "moeskip/backend/cuda/reach.hpp"

namespace moeskip::detail {

/// Memory that host and device share: pages go to whoever touches them.
struct shared_pages {
  static void* take(std::size_t bytes, std::size_t) {
    // More than the device has would travel to and fro, and can bring it to a halt.
    const std::size_t have = memory_of_device(), others = taken().fetch_add(bytes);
    void* p = nullptr;
    if (others + bytes > have) {
      taken() -= bytes;
      fail("out of memory: ", bytes, " bytes were asked for; expected at most the ", have,
           " that the device had free at the start, of which ", others, " are taken");
    }
    if (cudaMallocManaged(&p, bytes) != cudaSuccess) {
      cudaGetLastError();  // forgotten, or the next launch would report it
      taken() -= bytes;
      throw std::bad_alloc();
    }
    reached_memory::add(p, bytes);
    return p;
  }
  static void give(void* p, std::size_t bytes, std::size_t) {
    reached_memory::remove(p);
    taken() -= bytes;
    // Fails where the program is ending and the driver is gone: nothing is lost then.
    if (cudaFree(p) != cudaSuccess) cudaGetLastError();
  }

 private:
  static std::atomic<std::size_t>& taken() {
    static std::atomic<std::size_t> bytes{0};
    return bytes;
  }
  static std::size_t memory_of_device() {
    static const std::size_t bytes = [] {
      std::size_t free = 0, all = 0;
      expect_success(cudaMemGetInfo(&free, &all), "cudaMemGetInfo", "start");
      return free;
    }();
    return bytes;
  }
};

}  // namespace moeskip::detail
