// Which rows each expert works on: the choices of a call, sorted.
#pragma once

#include "moeskip/ops/contract.hpp"
#include "moeskip/tensor/routing.hpp"

namespace moeskip {

namespace detail {

/// Throws config_error where a row (K) has an expert twice.
inline void expect_different(vec<const int> chosen) {
  for (index_t k = 1; k < chosen.size(); ++k)
    for (index_t j = 0; j < k; ++j)
      MOESKIP_CHECK(config_error, chosen[k] < 0 || chosen[j] != chosen[k], "the router chose expert ", chosen[k],
                    " twice");
}

}  // namespace detail

/// Sorts the assignments of `chosen` (N, K) by expert, on the host. With a capacity (assignments per expert, 0: no
/// limit) the overflow is dropped; all first choices come before any second one, and within a rank rows come in order
/// (OpenMoE's priority). -1 is no choice. Throws config_error for an expert that does not exist, or that a row has
/// twice.
template <class Memory> dispatch plan_dispatch(mat<const int> chosen, int experts, index_t capacity, Memory& memory) {
  dispatch d{.first = memory.template take_zeroed<int>(experts + 1),
             .row = {},
             .choice = {},
             .assignment = memory.template take<int>(chosen.size()),
             .expert = {},
             .visited = {}};
  for (index_t n = 0; n < chosen.rows(); ++n) detail::expect_different(chosen.row(n));
  for (index_t k = 0; k < chosen.cols(); ++k)
    for (index_t n = 0; n < chosen.rows(); ++n) {
      if (chosen(n, k) == -1) {
        d.assignment[n * chosen.cols() + k] = -1;
        continue;
      }
      MOESKIP_CHECK(config_error, chosen(n, k) >= 0 && chosen(n, k) < experts, "the router chose expert ", chosen(n, k),
                    " of ", experts);
      int& count = d.first[chosen(n, k) + 1];
      const bool dropped = capacity > 0 && count >= capacity;
      count += !dropped;
      d.assignment[n * chosen.cols() + k] = dropped ? -1 : 0;
    }
  int visited = 0;
  for (int e = 0; e < experts; ++e) visited += d.first[e + 1] > 0, d.first[e + 1] += d.first[e];
  const int size = d.first[experts];
  d.row = memory.template take<int>(size), d.choice = memory.template take<int>(size);
  d.expert = memory.template take<int>(size), d.visited = memory.template take<int>(visited);
  for (index_t c = 0; c < chosen.size(); ++c) {
    int& m = d.assignment[c];
    if (m < 0) continue;
    const int e = chosen.data()[c];
    m = d.first[e]++;
    d.row[m] = int(c / chosen.cols()), d.choice[m] = int(c), d.expert[m] = e;
  }
  for (int e = experts; e > 0; --e) d.first[e] = d.first[e - 1];  // the sort moved each start to the next one's
  d.first[0] = 0;
  for (int e = experts - 1; e >= 0; --e)
    if (d.first[e] < d.first[e + 1]) d.visited[--visited] = e;
  return d;
}

/// plan_dispatch where the choices are made: on a backend that runs late the host has not seen them yet. There choices of
/// experts that do not exist are left out, and who asked looks for them later.
struct sort_choices_t {
  static constexpr const char* name = "sort_choices";
  template <class B, class Memory>
  dispatch operator()(B& b, mat<const int> chosen, int experts, index_t capacity, Memory& memory) const {
    dispatch d;
    run_kernel<sort_choices_t>(b, d, chosen, experts, capacity, memory);
    return d;
  }
};
inline constexpr sort_choices_t sort_choices{};

template <> struct kernel<sort_choices_t, on_reference> {
  template <class B, class Memory>
  static void run(B&, dispatch& d, mat<const int> chosen, int experts, index_t capacity, Memory& memory) {
    d = plan_dispatch(chosen, experts, capacity, memory);
  }
};
template <> struct kernel<sort_choices_t, on_cpu> : kernel<sort_choices_t, on_reference> {};

}  // namespace moeskip
