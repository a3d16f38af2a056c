// Routing on the CPU: the router's per-token functions, rows split among the threads.
#pragma once

#include "moeskip/backend/cpu/scratch.hpp"
#include "moeskip/base/parallel.hpp"
#include "moeskip/ops/route.hpp"

namespace moeskip {

template <> struct kernel<route_t, on_cpu> {
  template <class B, class R> static void run(B&, const routing<float>& r, mat<const float> logits, const R& router,
                                              const routing_call<float>& call) {
    parallel_for(
        logits.rows(),
        [&](index_t first, index_t last) {
          if constexpr (follows_previous<R>) {  // a sequence stays with the thread that has its first row
            while (first < last && call.rows.follows(first)) ++first;
            if (first < last)
              while (call.rows.follows(last)) ++last;
          }
          detail::route_rows(r, logits, router, call, first, last);
        },
        64);
  }
};

template <> struct kernel<route_backward_t, on_cpu> {
  template <class B, class R, class Memory>
  static void run(B&, mat<float> dlogits, mat<const float> dgate, mat<const float> logits, const routing<float>& r,
                  const R& router, const routing_call<float>& call, const auxiliary_weights& weights, Memory& memory) {
    const auto scope = memory.scope();
    const index_t rows = logits.rows(), E = r.probability.cols();
    const index_t following = weights.change != 0 ? detail::following(call.rows) : 0;
    mat<float> scratch =
        memory.template take<float>(thread_count(), (E + 15) / 16 * 16);  // a cache line is one thread's
    parallel([&](int thread, int threads) {
      const range mine = share(rows, thread, threads);
      for (index_t n = mine.first; n < mine.last; ++n)
        kernel<route_backward_t, on_reference>::row(dlogits, dgate, logits, r, router, call, weights, following, n,
                                                    {scratch.row(thread).data(), E});
    });
  }
};

template <> struct kernel<balance_loss_t, on_cpu> {
  template <class B> static void run(B&, vec<auxiliary_losses<float>> sum, const routing<float>& r,
                                     mat<const float> logits, const routing_call<float>& call) {
    struct by_row;
    const index_t rows = r.probability.rows(), following = detail::following(call.rows);
    auto* parts = cpu_kernels::thread_scratch<by_row, auxiliary_losses<float>>(rows);
    parallel_for(
        rows,
        [&](index_t first, index_t last) {
          for (index_t n = first; n < last; ++n)
            parts[n] = kernel<balance_loss_t, on_reference>::row(r, logits, call, following, n);
        },
        64);
    auxiliary_losses<float> losses;
    for (index_t n = 0; n < rows; ++n) losses += parts[n];  // in order: the same bits on any number of threads
    sum[0] += losses;
  }
};

}  // namespace moeskip
