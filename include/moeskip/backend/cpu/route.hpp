// Routing on the CPU: the router's per-token function, rows split among the threads.
#pragma once

#include "moeskip/base/parallel.hpp"
#include "moeskip/ops/route.hpp"

namespace moeskip {

template <> struct kernel<route_t, on_cpu> {
  template <class B, class R> static void run(B& b, const routing<float>& r, mat<const float> logits, const R& router,
                                              const living_experts& alive) {
    const index_t E = logits.cols(), K = R::experts_per_token;
    parallel_for(
        logits.rows(),
        [&](index_t first, index_t last) {
          for (index_t n = first; n < last; ++n)
            router.template forward<float>({logits.row(n).data(), r.probability.row(n).data(), r.chosen.row(n).data(),
                                            r.gate.row(n).data(), int(E), &alive.of(n)});
        },
        64);
    const float share = 1.f / float(logits.rows() * K);
    std::fill(r.load.begin(), r.load.end(), 0.f);
    for (const int e : r.chosen)
      if (e >= 0 && e < E) r.load[e] += share;  // plan_dispatch refuses the others
    static_cast<void>(b);
  }
};

template <> struct kernel<route_backward_t, on_cpu> {
  template <class B, class R, class Memory> static void run(B& b, mat<float> dlogits, mat<const float> dgate,
                                                            mat<const float> logits, const routing<float>& r,
                                                            const R& router, const living_experts& alive,
                                                            double balance_weight, double z_weight, Memory& memory) {
    const auto scope = memory.scope();
    const index_t rows = logits.rows(), E = logits.cols();
    mat<float> scratch =
        memory.template take<float>(thread_count(), (E + 15) / 16 * 16);  // a cache line is one thread's
    parallel([&](int thread, int threads) {
      const range mine = share(rows, thread, threads);
      for (index_t n = mine.first; n < mine.last; ++n)
        kernel<route_backward_t, on_reference>::row(dlogits, dgate, logits, r, router, alive, balance_weight, z_weight,
                                                    n, {scratch.row(thread).data(), E});
    });
    static_cast<void>(b);
  }
};

}  // namespace moeskip
