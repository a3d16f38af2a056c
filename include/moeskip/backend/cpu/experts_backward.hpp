// The experts' gradients on the CPU. First per expert and tile of rows: back through down, SwiGLU, gate and up. Then
// per expert the weights' gradients, which sum over all its rows; then each row adds what its experts sent back.
#pragma once

#include "moeskip/backend/cpu/experts.hpp"

namespace moeskip {

template <> struct kernel<experts_backward_t, on_cpu> {
  static constexpr int tile = 256;  // rows

  template <class W, class Isa, class P, class Memory>
  static void run(cpu<W, Isa, P>&, mat<float> dh, mat<float> dgate, const expert_weights<float>& dw,
                  mat<const float> dy, mat<float> gate_up, mat<const float> h, const routing<float>& r,
                  const dispatch& d, const expert_weights<const W>& w, Memory& memory, const activation_mask& mask) {
    namespace k = cpu_kernels;
    using A = k::arch<Isa>;
    const auto scope = memory.scope();
    const index_t D = h.cols(), F = w.down.cols(), K = r.chosen.cols();
    mat<float> act = memory.template take<float>(d.size(), F);  // gate · silu(…) · up: what down was given, weighted
    mat<float> back = memory.template take<float>(d.size(), D);  // dh, by assignment
    vec<k::expert_task> tasks = memory.template take<k::expert_task>(d.size() / tile + d.experts());
    const index_t count = k::split_experts(d, tile, tasks.data());
    std::fill(dgate.begin(), dgate.end(), 0.f);

    parallel_tasks(count, [&](index_t i) {
      const auto [e, first, last] = tasks[i];
      const index_t rows = last - first;
      struct activations;
      float* dact = k::thread_scratch<activations>(tile * F);
      k::gemm<A, P>(k::product{.data = dact, .stride = F}, k::factor<float>{dy.data(), D, false, d.row.data() + first},
                    k::factor<W>{w.down.plane(e).data(), F}, {0, rows, 0, F}, D);
      for (index_t m = first; m < last; ++m) {
        const float gate = r.gate.data()[d.choice[m]];
        float* d_row = dact + (m - first) * F;
        struct masks;
        float* factor = mask.masks() ? k::thread_scratch<masks>(F) : nullptr;
        if (factor) {
          mask.factors(factor, d.row[m], e, 0, F);
          for (index_t f = 0; f < F; ++f) d_row[f] *= factor[f];
        }
        dgate.data()[d.choice[m]] =
            k::weighted_swiglu_backward_row<A>(gate_up.row(m).data(), act.row(m).data(), d_row, gate, F);
        if (factor)
          for (index_t f = 0; f < F; ++f) act(m, f) *= factor[f];
      }
      k::gemm<A, P>(k::product{.data = back.row(first).data(), .stride = D},
                    k::factor<float>{gate_up.row(first).data(), 2 * F}, k::factor<W>{w.gate_up.plane(e).data(), D},
                    {0, rows, 0, D}, 2 * F);
    });

    // Gate, up and down of each expert are tasks, so that a popular expert does not keep one thread waiting.
    parallel_tasks(3 * index_t(d.experts()), [&](index_t i) {
      const int e = int(i / 3), part = int(i % 3);
      const index_t first = d.first[e], rows = d.first[e + 1] - first;
      const int* list = d.row.data() + first;
      if (rows == 0) return;
      if (part == 2) {  // down (D, F) += dyᵀ act
        k::gemm<A, P>(k::product{.data = dw.down.plane(e).data(), .stride = F, .accumulate = true},
                      k::factor<float>{dy.data(), D, true, list}, k::factor<float>{act.row(first).data(), F},
                      {0, D, 0, F}, rows);
      } else {  // gate (F, D), or up: += dgateᵀ h
        k::gemm<A, P>(k::product{.data = dw.gate_up.plane(e).row(part * F).data(), .stride = D, .accumulate = true},
                      k::factor<float>{gate_up.row(first).data() + part * F, 2 * F, true},
                      k::factor<float>{h.data(), D, false, list}, {0, F, 0, D}, rows);
      }
    });

    parallel_for(
        dh.size(), [&](index_t first, index_t last) { std::fill(dh.data() + first, dh.data() + last, 0.f); }, 1 << 15);
    k::combine_rows<A>(dh, back, d, K, [](int) { return 1.f; });
  }
};

}  // namespace moeskip
