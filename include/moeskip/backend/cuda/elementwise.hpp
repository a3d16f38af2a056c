// Phases in which every number is made by itself: embedding, rows gathered and scattered, SwiGLU, sums, stored weights;
// and the sum of squares.
#pragma once

#include <algorithm>
#include <vector>

#include "moeskip/backend/cuda/backend.hpp"
#include "moeskip/backend/cuda/block.hpp"
#include "moeskip/ops/embed.hpp"
#include "moeskip/ops/gate_rows.hpp"
#include "moeskip/ops/note_none.hpp"
#include "moeskip/ops/select_rows.hpp"
#include "moeskip/ops/swiglu.hpp"
#include "moeskip/ops/vector.hpp"

namespace moeskip {

namespace phase {

template <class W> struct embed {
  static constexpr const char* name = "embed";
  mat<float> x;  // (N, D)
  vec<const int> tokens;
  mat<const W> table;
  MOESKIP_HD void operator()(index_t i) const { x.data()[i] = to<float>(table(tokens[i / x.cols()], i % x.cols())); }
};

/// Each token that the call has is one row's work: its gradients are added in the order of the call's rows.
struct embed_backward {
  static constexpr const char* name = "embed_backward";
  mat<float> dtable;
  mat<const float> dx;
  vec<const int> rows, first, tokens;  // (N) sorted by token; (U+1) where the rows of each of U tokens begin; (U)
  MOESKIP_HD void operator()(index_t i) const {
    const index_t u = i / dx.cols(), col = i % dx.cols();
    float& sum = dtable(tokens[u], col);
    for (int m = first[u]; m < first[u + 1]; ++m) sum += dx(rows[m], col);
  }
};

struct gather_rows {
  static constexpr const char* name = "gather_rows";
  mat<float> out;
  mat<const float> x;
  vec<const int> rows;
  MOESKIP_HD void operator()(index_t i) const { out.data()[i] = x(rows[i / x.cols()], i % x.cols()); }
};

struct scatter_rows {
  static constexpr const char* name = "scatter_rows";
  mat<float> out;
  mat<const float> x;
  vec<const int> rows;
  MOESKIP_HD void operator()(index_t i) const { out(rows[i / x.cols()], i % x.cols()) = x.data()[i]; }
};

struct swiglu {
  static constexpr const char* name = "swiglu";
  mat<float> act;            // (M, F)
  mat<const float> gate_up;  // (M, 2F)
  MOESKIP_HD void operator()(index_t i) const {
    const index_t m = i / act.cols(), f = i % act.cols();
    act.data()[i] = silu(gate_up(m, f)) * gate_up(m, act.cols() + f);
  }
};

struct swiglu_backward {
  static constexpr const char* name = "swiglu_backward";
  mat<float> dgate_up;
  mat<const float> dact, gate_up;
  MOESKIP_HD void operator()(index_t i) const {
    const index_t F = dact.cols(), m = i / F, f = i % F;
    const float gate = gate_up(m, f), up = gate_up(m, F + f), d = dact.data()[i];
    dgate_up(m, f) = d * up * silu_derivative(gate);
    dgate_up(m, F + f) = d * silu(gate);
  }
};

struct gate_rows {
  static constexpr const char* name = "gate_rows";
  mat<float> y;
  mat<const float> x, g;  // (N, F) (N, 1)
  MOESKIP_HD void operator()(index_t i) const { y.data()[i] = sigmoid(g(i / x.cols(), 0)) * x.data()[i]; }
};

struct combine {
  static constexpr const char* name = "combine";
  vec<float> out;
  float a;
  vec<const float> x;
  float b;
  vec<const float> y;
  MOESKIP_HD void operator()(index_t i) const { out[i] = a * x[i] + b * y[i]; }
};

struct accumulate {
  static constexpr const char* name = "accumulate";
  vec<float> y;
  vec<const float> x;
  MOESKIP_HD void operator()(index_t i) const { y[i] += x[i]; }
};

struct fill_with {
  static constexpr const char* name = "fill_with";
  vec<float> y;
  float value;
  MOESKIP_HD void operator()(index_t i) const {
    const float four[quad] = {value, value, value, value};
    store_pack(y.data(), i * quad, y.size(), four);
  }
};

struct note_none {
  static constexpr const char* name = "note_none";
  cube<int> past;
  token_rows rows;
  MOESKIP_HD void operator()(index_t n) const { past.plane(rows.slot[n])(rows.position[n], 0) = -1; }
};

/// Numbers as another type, or a copy of them; a thread takes a pack.
template <class To, class From> struct converted {
  static constexpr const char* name = "converted";
  vec<To> to;  // (n)
  vec<const From> from;
  MOESKIP_HD static constexpr index_t count(index_t n) { return (n + pack - 1) / pack; }
  MOESKIP_HD void operator()(index_t i) const {
    float value[pack];
    load_pack(value, from.data(), i * pack, from.size());
    store_pack(to.data(), i * pack, to.size(), value);
  }
};

/// f(i) for every fourth i < n, by all threads of all blocks in turn.
template <class Block, class F> MOESKIP_HD void for_quads(const Block& b, index_t n, const F& f) {
  const index_t step = quad * b.blocks() * b.threads();
  for (index_t i = quad * (b.block() * b.threads() + b.thread()); i < n; i += step) f(i);
}

/// parts: the sum of each block's share.
struct sum_of_squares {
  static constexpr const char* name = "sum_of_squares";
  static constexpr int barriers = 1;
  vec<double> parts;
  vec<const float> x;
  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    double sum = 0;
    for_quads(b, x.size(), [&](index_t i) {
      float value[quad];
      load_pack(value, x.data(), i, x.size());
      for (const float v : value) sum += double(v) * double(v);
    });
    sum = block_sum(b, sum, 0, 0);
    if (b.thread() == 0) parts[b.block()] = sum;
  }
};

}  // namespace phase

namespace detail {

/// Blocks that go over n numbers in quads. A large GPU is full with half of the most there are; they do not depend on
/// the GPU, or its sums would.
constexpr launch_shape blocks_over(index_t n, index_t shared) {
  constexpr index_t threads = 256, most = 2048;
  return {std::min(ceiling(n, phase::quad * threads), most), int(threads), shared};
}

}  // namespace detail

template <> struct kernel<embed_t, on_cuda> {
  template <class B, class W> static void run(B&, mat<float> x, vec<const int> tokens, mat<const W> table) {
    using call = detail::device_call<embed_t, B>;
    call::each(x.size(), phase::embed<W>{call::seen(x), call::listed(tokens), call::seen(table)});
  }
};

template <> struct kernel<embed_backward_t, on_cuda> {
  template <class B> static void run(B&, mat<float> dtable, mat<const float> dx, vec<const int> tokens) {
    using call = detail::device_call<embed_backward_t, B>;
    std::vector<int> rows(std::size_t(tokens.size())), first, ids;
    for (std::size_t n = 0; n < rows.size(); ++n) rows[n] = int(n);
    std::stable_sort(rows.begin(), rows.end(), [&](int a, int b) { return tokens[a] < tokens[b]; });
    for (std::size_t m = 0; m < rows.size(); ++m)
      if (m == 0 || tokens[rows[m]] != ids.back()) first.push_back(int(m)), ids.push_back(tokens[rows[m]]);
    first.push_back(int(rows.size()));
    call::each(index_t(ids.size()) * dx.cols(),
               phase::embed_backward{call::seen(dtable), call::seen(dx), call::listed(rows), call::listed(first),
                                     call::listed(ids)});
  }
};

template <> struct kernel<gather_rows_t, on_cuda> {
  template <class B> static void run(B&, mat<float> out, mat<const float> x, vec<const int> rows) {
    using call = detail::device_call<gather_rows_t, B>;
    call::each(out.size(), phase::gather_rows{call::seen(out), call::seen(x), call::listed(rows)});
  }
};

template <> struct kernel<scatter_rows_t, on_cuda> {
  template <class B> static void run(B&, mat<float> out, mat<const float> x, vec<const int> rows) {
    using call = detail::device_call<scatter_rows_t, B>;
    call::each(x.size(), phase::scatter_rows{call::seen(out), call::seen(x), call::listed(rows)});
  }
};

template <> struct kernel<swiglu_t, on_cuda> {
  template <class B> static void run(B&, mat<float> act, mat<const float> gate_up) {
    using call = detail::device_call<swiglu_t, B>;
    call::each(act.size(), phase::swiglu{call::seen(act), call::seen(gate_up)});
  }
};

template <> struct kernel<swiglu_backward_t, on_cuda> {
  template <class B> static void run(B&, mat<float> dgate_up, mat<const float> dact, mat<const float> gate_up) {
    using call = detail::device_call<swiglu_backward_t, B>;
    call::each(dact.size(), phase::swiglu_backward{call::seen(dgate_up), call::seen(dact), call::seen(gate_up)});
  }
};

template <> struct kernel<gate_rows_t, on_cuda> {
  template <class B> static void run(B&, mat<float> y, mat<const float> x, mat<const float> g) {
    using call = detail::device_call<gate_rows_t, B>;
    call::each(y.size(), phase::gate_rows{call::seen(y), call::seen(x), call::seen(g)});
  }
};

template <> struct kernel<accumulate_t, on_cuda> {
  template <class B> static void run(B&, vec<float> y, vec<const float> x) {
    using call = detail::device_call<accumulate_t, B>;
    call::each(y.size(), phase::accumulate{call::seen(y), call::seen(x)});
  }
};

template <> struct kernel<combine_t, on_cuda> {
  template <class B> static void run(B&, vec<float> out, double a, vec<const float> x, double b, vec<const float> y) {
    using call = detail::device_call<combine_t, B>;
    call::each(out.size(), phase::combine{call::seen(out), float(a), call::seen(x), float(b), call::seen(y)});
  }
};

template <> struct kernel<fill_with_t, on_cuda> {
  template <class B> static void run(B&, vec<float> y, double value) {
    using call = detail::device_call<fill_with_t, B>;
    call::each(detail::ceiling(y.size(), phase::quad), phase::fill_with{call::seen(y), float(value)});
  }
};

template <> struct kernel<note_none_t, on_cuda> {
  template <class B> static void run(B&, cube<int> past, const token_rows& rows) {
    using call = detail::device_call<note_none_t, B>;
    call::each(rows.size(), phase::note_none{call::seen(past), call::listed(rows)});
  }
};

template <> struct kernel<copy_into_t, on_cuda> {
  template <class B> static void run(B&, vec<float> y, vec<const float> x) {
    using call = detail::device_call<copy_into_t, B>;
    using copied = phase::converted<float, float>;
    call::each(copied::count(y.size()), copied{call::seen(y), call::seen(x)});
  }
};

template <> struct kernel<store_weights_t, on_cuda> {
  template <class B, class W> static void run(B&, vec<W> w, vec<const float> master) {
    using call = detail::device_call<store_weights_t, B>;
    using convert = phase::converted<W, float>;
    call::each(convert::count(w.size()), convert{call::seen(w), call::seen(master)});
  }
};

template <> struct kernel<sum_of_squares_t, on_cuda> {
  template <class B> static void run(B&, double& sum, vec<const float> x) {
    using call = detail::device_call<sum_of_squares_t, B>;
    const auto scope = call::scratch().scope();
    const launch_shape shape = detail::blocks_over(x.size(), 64);
    const vec<double> parts = call::scratch().template take<double>(shape.blocks);
    call::launch(shape, phase::sum_of_squares{parts, call::seen(x)});
    call::settle();
    for (const double part : parts) sum += part;
  }
};

}  // namespace moeskip
