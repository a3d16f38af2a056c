// Rotary positions and the key/value cache: one pair of a head at a time.
#pragma once

#include <map>
#include <tuple>
#include <vector>

#include "moeskip/backend/cuda/backend.hpp"
#include "moeskip/ops/rope.hpp"

namespace moeskip {

namespace phase {

/// Pair i of a head: the first r/2 are (i, i + r/2), rotated; those behind them pair the d − r others in the same way.
struct head_pair {
  int i, first, apart;  // its elements are first and first + apart
  bool turns;
  MOESKIP_HD head_pair(int pair, const attention_shape& s) : i(pair) {
    const int pairs = s.head_dim / 2, rotated = s.rotated() / 2;
    turns = i < rotated;
    first = turns ? i : i + rotated;
    apart = turns ? rotated : pairs - rotated;
  }
};

/// A pair of one head of one row; heads count queries (if any), then keys, then values.
struct row_pair : head_pair {
  index_t n;
  int head;
  MOESKIP_HD row_pair(index_t index, int heads, const attention_shape& s)
      : head_pair(int(index % (s.head_dim / 2)), s),
        n(index / (index_t(heads) * (s.head_dim / 2))),
        head(int(index / (s.head_dim / 2) % heads)) {}
};

/// The turn of a pair to its position.
struct pair_turn {
  float cosine, sine;
  MOESKIP_HD pair_turn(float c, float si) : cosine(c), sine(si) {}
  MOESKIP_HD pair_turn(int position, double frequency) {
    const rotation r(position, frequency);
    cosine = float(r.cosine), sine = float(r.sine);
  }
  MOESKIP_HD void operator()(float& a, float& b) const {
    const float first = a;
    a = first * cosine - b * sine;
    b = b * cosine + first * sine;
  }
  MOESKIP_HD pair_turn back() const {
    pair_turn t = *this;
    t.sine = -sine;
    return t;
  }
};

struct rope_append {
  static constexpr const char* name = "rope_append";
  mat<float> q;  // (N, H·d) or empty
  kv_layer<float> kv;
  mat<const float> qkv;
  token_rows rows;
  vec<const double> frequency;  // (r / 2)
  attention_shape s;
  MOESKIP_HD int query_heads() const { return q.data() ? s.heads : 0; }
  MOESKIP_HD void operator()(index_t index) const {
    const int H = query_heads(), G = s.kv_heads;
    const row_pair at(index, H + 2 * G, s);
    const float* in = &qkv(at.n, index_t(at.head) * s.head_dim + at.first);
    const index_t slot = rows.slot[at.n], position = rows.position[at.n];
    float a = in[0], b = in[at.apart], *out = nullptr;
    if (at.head < H) out = &q(at.n, at.head * s.head_dim + at.first);
    else if (at.head < H + G) out = &kv.keys.plane(slot)(position, (at.head - H) * s.head_dim + at.first);
    else out = &kv.values.plane(slot)(position, (at.head - H - G) * s.head_dim + at.first);
    if (at.turns && at.head < H + G) pair_turn(int(position), frequency[at.i])(a, b);
    out[0] = a, out[at.apart] = b;
  }
};

struct rope_append_backward {
  static constexpr const char* name = "rope_append_backward";
  mat<float> dqkv;
  mat<const float> dq;
  kv_layer<float> dkv;
  token_rows rows;
  vec<const double> frequency;  // (r / 2)
  attention_shape s;
  MOESKIP_HD void operator()(index_t index) const {
    const int H = s.heads, G = s.kv_heads;
    const row_pair at(index, H + 2 * G, s);
    float* out = &dqkv(at.n, index_t(at.head) * s.head_dim + at.first);
    const index_t slot = rows.slot[at.n], position = rows.position[at.n];
    const float* in = nullptr;
    if (at.head < H) in = &dq(at.n, at.head * s.head_dim + at.first);
    else if (at.head < H + G) in = &dkv.keys.plane(slot)(position, (at.head - H) * s.head_dim + at.first);
    else in = &dkv.values.plane(slot)(position, (at.head - H - G) * s.head_dim + at.first);
    float a = in[0], b = in[at.apart];
    if (at.turns && at.head < H + G) pair_turn(int(position), frequency[at.i]).back()(a, b);
    out[0] = a, out[at.apart] = b;
  }
};

}  // namespace phase

namespace detail {
/// Of each pair that is rotated (r / 2). The calling thread keeps them for each shape that it has met.
inline vec<const double> rope_frequencies(const attention_shape& s) {
  const rope_stretch& r = s.stretch;
  thread_local std::map<std::tuple<float, int, float, float, float, int>, std::vector<double>> tables;
  std::vector<double>& table = tables[{s.rope_theta, s.rotated(), r.factor, r.low, r.high, r.original}];
  for (int pair = int(table.size()); pair < s.rotated() / 2; ++pair) table.push_back(rope_frequency(pair, s));
  return {table.data(), index_t(table.size())};
}
}  // namespace detail

template <> struct kernel<rope_append_t, on_cuda> {
  template <class B> static void run(B&, mat<float> q, kv_layer<float> kv, mat<const float> qkv, const token_rows& rows,
                                     const attention_shape& s) {
    using call = detail::device_call<rope_append_t, B>;
    const phase::rope_append p{call::seen(q),
                               call::seen(kv),
                               call::seen(qkv),
                               call::listed(rows),
                               call::listed(detail::rope_frequencies(s)),
                               s};
    call::each(rows.size() * (p.query_heads() + 2 * s.kv_heads) * (s.head_dim / 2), p);
  }
};

template <> struct kernel<rope_append_backward_t, on_cuda> {
  template <class B> static void run(B&, mat<float> dqkv, mat<const float> dq, kv_layer<float> dkv,
                                     const token_rows& rows, const attention_shape& s) {
    using call = detail::device_call<rope_append_backward_t, B>;
    call::each(rows.size() * (s.heads + 2 * s.kv_heads) * (s.head_dim / 2),
               phase::rope_append_backward{call::seen(dqkv), call::seen(dq), call::seen(dkv), call::listed(rows),
                                           call::listed(detail::rope_frequencies(s)), s});
  }
};

}  // namespace moeskip
