// Threads: fork and join over OpenMP (docs/adr/0003-threads.md). Without OpenMP everything runs on one thread. Work is
// split by thread number, or into tasks whose results do not depend on which thread takes them: never on timing.
#pragma once

#include <algorithm>
#include <atomic>
#include <exception>

#include "moeskip/base/config.hpp"

#if defined(_OPENMP)
  #include <omp.h>
#endif

namespace moeskip {

/// Threads that a parallel region started here would get.
inline int thread_count() {
#if defined(_OPENMP)
  return omp_in_parallel() ? 1 : omp_get_max_threads();
#else
  return 1;
#endif
}

/// Lets later parallel regions of the calling thread use n threads (at least 1). Without OpenMP it changes nothing.
inline void set_thread_count(int n) {
#if defined(_OPENMP)
  omp_set_num_threads(std::max(n, 1));
#else
  static_cast<void>(n);
#endif
}

/// Runs body(thread, threads) once on each thread and waits for all. Nested regions run on the calling thread. Where
/// bodies throw, one of the exceptions is thrown again when all threads are done.
template <class Body> void parallel(Body&& body) {
#if defined(_OPENMP)
  if (thread_count() > 1) {
    std::exception_ptr failure;
  #pragma omp parallel
    {
      try {
        body(omp_get_thread_num(), omp_get_num_threads());
      } catch (...) {
  #pragma omp critical(moeskip_parallel_failure)
        failure = std::current_exception();
      }
    }
    if (failure) std::rethrow_exception(failure);
    return;
  }
#endif
  body(0, 1);
}

struct range {
  index_t first, last;
};

/// The share of [0, n) that thread `thread` of `threads` works on, in whole multiples of `grain`.
inline range share(index_t n, int thread, int threads, index_t grain = 1) {
  const index_t blocks = (n + grain - 1) / grain;
  const index_t first = blocks * thread / threads * grain, last = blocks * (thread + 1) / threads * grain;
  return {std::min(first, n), std::min(last, n)};
}

/// Runs body(first, last) over a static partition of [0, n); on one thread where n is below `worthwhile`, because
/// starting a region costs about a microsecond.
template <class Body> void parallel_for(index_t n, Body&& body, index_t worthwhile = 2, index_t grain = 1) {
  if (n < worthwhile) return void(n > 0 ? body(index_t{0}, n) : void());
  parallel([&](int thread, int threads) {
    const range mine = share(n, thread, threads, grain);
    if (mine.first < mine.last) body(mine.first, mine.last);
  });
}

/// Runs body(task) for tasks [0, n) on all threads, each taking the next one: for tasks of unlike size. Which thread
/// runs a task must not matter.
template <class Body> void parallel_tasks(index_t n, Body&& body) {
  std::atomic<index_t> next{0};
  parallel([&](int, int) {
    for (index_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < n;) body(task);
  });
}

}  // namespace moeskip
