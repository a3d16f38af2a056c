// The experts of a call, forward, on the CPU.
//   Up to 16 rows  every chosen expert's weights stream past once, for all its rows together; each row's bits are its own
//   More           a task is one expert and up to 256 of its rows: gather, gate and up, SwiGLU, down, all in the cache;
//                  then each row adds its experts' outputs in the order of their ids
#pragma once

#include "moeskip/backend/cpu/elementwise.hpp"
#include "moeskip/backend/cpu/linear.hpp"
#include "moeskip/ops/experts.hpp"

namespace moeskip {

namespace cpu_kernels {

/// Up to `tile` assignments of one expert.
struct expert_task {
  int expert, first, last;
};

/// Fills `tasks` (room for one per tile begun and expert), returns how many.
inline index_t split_experts(const dispatch& d, int tile, expert_task* tasks) {
  index_t count = 0;
  for (int e = 0; e < d.experts(); ++e)
    for (int m = d.first[e]; m < d.first[e + 1]; m += tile) tasks[count++] = {e, m, std::min(m + tile, d.first[e + 1])};
  return count;
}

/// act (last − first) of row n, units [first, last) of expert e, times the mask's factors.
inline void mask_units(float* act, const activation_mask& mask, index_t n, int e, index_t first, index_t last) {
  struct masks;
  float* factor = thread_scratch<masks>(last - first);
  mask.factors(factor, n, e, first, last);
  for (index_t i = 0; i < last - first; ++i) act[i] *= factor[i];
}

/// y_n (D) += Σ over the experts of row n, in order of their ids, of factor(m) · parts(m). K is small: selection sort.
template <class A, class Factor>
void combine_rows(mat<float> y, mat<const float> parts, const dispatch& d, index_t K, Factor&& factor) {
  parallel_for(
      y.rows(),
      [&](index_t first, index_t last) {
        for (index_t n = first; n < last; ++n) {
          int done = -1;
          for (index_t k = 0; k < K; ++k) {
            int next = -1;  // assignments are sorted by expert: the smallest one above the last
            for (index_t j = 0; j < K; ++j) {
              const int m = d.assignment[n * K + j];
              if (m > done && (next < 0 || m < next)) next = m;
            }
            if (next < 0) break;
            done = next;
            add_scaled<A>(y.row(n).data(), factor(next), parts.row(next).data(), y.cols());
          }
        }
      },
      32);
}

}  // namespace cpu_kernels

template <> struct kernel<experts_t, on_cpu> {
  static constexpr int tile = 256;  // rows

  template <class W, class Isa, class P, class Memory>
  static void run(cpu<W, Isa, P>&, mat<float> y, mat<float> gate_up, mat<const float> residual, mat<const float> h,
                  const routing<float>& r, const dispatch& d, const expert_weights<const W>& w, Memory& memory,
                  const activation_mask& mask) {
    using A = cpu_kernels::arch<Isa>;
    if (h.rows() <= cpu_kernels::max_matvec_tokens) few<A, P>(y, gate_up, residual, h, r, d, w, memory, mask);
    else many<A, P>(y, gate_up, residual, h, r, d, w, memory, mask);
  }

 private:
  /// Decode and verify. Phase 1: act = silu(gate h) · up h, the rows of all chosen experts split among the threads.
  /// Phase 2: y, its columns split among the threads; experts in the order of their ids.
  template <class A, class P, class W, class Memory>
  static void few(mat<float> y, mat<float> gate_up, mat<const float> residual, mat<const float> h,
                  const routing<float>& r, const dispatch& d, const expert_weights<const W>& w, Memory& memory,
                  const activation_mask& mask) {
    namespace k = cpu_kernels;
    const auto scope = memory.scope();
    const index_t D = h.cols(), F = w.down.cols();
    mat<float> act = memory.template take<float>(d.size(), F);
    vec<int> chosen = memory.template take<int>(d.experts());  // experts with rows, in order
    index_t used = 0;
    for (int e = 0; e < d.experts(); ++e)
      if (d.first[e] < d.first[e + 1]) chosen[used++] = e;
    const bool alone = used * 3 * F * D * index_t(sizeof(W)) < k::parallel_bytes;

    parallel_for(
        used * F,
        [&](index_t first, index_t last) {
          while (first < last) {
            const int e = chosen[first / F];
            const index_t f = first % F, end = std::min(F, f + (last - first)), m = d.first[e],
                          rows = d.first[e + 1] - m;
            const auto* packed = pack<A, W, P>(h, d.row.data() + m, rows);
            k::matvec_args<W> call{gate_up.row(m).data(), 2 * F, w.gate_up.plane(e).data(), D, rows};
            k::matvec<A>(call, packed, f, end);
            k::matvec<A>(call, packed, F + f, F + end);
            for (index_t i = m; i < m + rows; ++i) {
              const float* gate = gate_up.row(i).data();
              k::swiglu_row<A>(act.row(i).data() + f, gate + f, gate + F + f, end - f);
              if (mask.masks()) k::mask_units(act.row(i).data() + f, mask, d.row[i], e, f, end);
            }
            first += end - f;
          }
        },
        alone ? used * F + 1 : 0, 8);

    parallel_for(
        D,
        [&](index_t first, index_t last) {
          for (index_t n = 0; n < y.rows(); ++n)
            if (y.data() != residual.data())
              std::copy(&residual(n, first), residual.row(n).data() + last, &y(n, first));
          struct outputs;
          float* out = k::thread_scratch<outputs>(k::max_matvec_tokens * D);
          for (index_t i = 0; i < used; ++i) {
            const index_t m = d.first[chosen[i]], rows = d.first[chosen[i] + 1] - m;
            const auto* packed = pack<A, W, P>(act.rows(m, rows), nullptr, rows);
            k::matvec<A>(k::matvec_args<W>{out, D, w.down.plane(chosen[i]).data(), F, rows}, packed, first, last);
            for (index_t j = 0; j < rows; ++j)
              k::add_scaled<A>(&y(d.row[m + j], first), r.gate.data()[d.choice[m + j]], out + j * D + first,
                               last - first);
          }
        },
        alone ? D + 1 : 0, 16);
  }

  /// Inputs for the decode kernel, in the calling thread's scratch: x (rows, n), or those rows of it that `list` names.
  template <class A, class W, class P>
  static const cpu_kernels::packed_input<W, P>* pack(mat<const float> x, const int* list, index_t rows) {
    namespace k = cpu_kernels;
    struct gathered;
    struct packed;
    const float* from = x.data();
    if (list) {
      float* to = k::thread_scratch<gathered>(rows * x.cols());
      for (index_t i = 0; i < rows; ++i) std::copy_n(x.row(list[i]).data(), x.cols(), to + i * x.cols());
      from = to;
    }
    auto* out = k::thread_scratch<packed, k::packed_input<W, P>>(k::packed_size<W, A>(rows, x.cols()));
    k::pack_tokens<W, A>(out, from, x.cols(), rows, x.cols());
    return out;
  }

  template <class A, class P, class W, class Memory>
  static void many(mat<float> y, mat<float> gate_up, mat<const float> residual, mat<const float> h,
                   const routing<float>& r, const dispatch& d, const expert_weights<const W>& w, Memory& memory,
                   const activation_mask& mask) {
    namespace k = cpu_kernels;
    const auto scope = memory.scope();
    const index_t D = h.cols(), F = w.down.cols(), K = r.chosen.cols();
    mat<float> out = memory.template take<float>(d.size(), D);
    vec<k::expert_task> tasks = memory.template take<k::expert_task>(d.size() / tile + d.experts());
    const index_t count = k::split_experts(d, tile, tasks.data());
    parallel_tasks(count, [&](index_t i) {
      const auto [e, first, last] = tasks[i];
      const index_t rows = last - first;
      struct activations;
      float* act = k::thread_scratch<activations>(tile * F);
      k::gemm<A, P>(k::product{.data = gate_up.row(first).data(), .stride = 2 * F},
                    k::factor<float>{h.data(), D, false, d.row.data() + first},
                    k::factor<W>{w.gate_up.plane(e).data(), D, true}, {0, rows, 0, 2 * F}, D);
      for (index_t m = 0; m < rows; ++m) {
        const float* gate = gate_up.row(first + m).data();
        k::swiglu_row<A>(act + m * F, gate, gate + F, F);
        if (mask.masks()) k::mask_units(act + m * F, mask, d.row[first + m], e, 0, F);
      }
      k::gemm<A, P>(k::product{.data = out.row(first).data(), .stride = D}, k::factor<float>{act, F},
                    k::factor<W>{w.down.plane(e).data(), F, true}, {0, rows, 0, D}, F);
    });
    if (y.data() != residual.data())
      parallel_for(
          y.size(),
          [&](index_t first, index_t last) {
            std::copy(residual.data() + first, residual.data() + last, y.data() + first);
          },
          1 << 15);
    k::combine_rows<A>(y, out, d, K, [&](int m) { return r.gate.data()[d.choice[m]]; });
  }
};

}  // namespace moeskip
