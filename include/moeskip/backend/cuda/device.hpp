// driver::device: phases as kernels on the current GPU, in the calling thread's stream. Plain C++ sees declarations;
// cuda.cuh has the definitions, and cuda_program<V> makes kernels of all phases. A phase that no .cu of the program
// made is an undefined reference to driver::device::each or launch, whose argument names it.
#pragma once

#include "moeskip/backend/cuda/backend.hpp"

namespace moeskip::driver {

struct device {
  static constexpr const char* name = "cuda";

  /// Throws error, in one sentence, where there is no device that can be used. From the first call on, buffers are made
  /// of memory that host and device share.
  static void start();
  template <class Phase> static void each(index_t n, const Phase& phase);
  template <class Phase> static void launch(const launch_shape& shape, const Phase& phase);
  /// Throws error for what went wrong on the device since the last call.
  static void settle();
  static const void* list(const void* p, std::size_t bytes);
  static arena& scratch();
};

}  // namespace moeskip::driver
