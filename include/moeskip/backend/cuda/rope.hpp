// Rotary positions and the key/value cache: one pair of a head at a time.
#pragma once

#include "moeskip/backend/cuda/backend.hpp"
#include "moeskip/ops/rope.hpp"

namespace moeskip {

namespace phase {

/// A pair (i, i + d/2) of head h of row n; heads count queries (if any), then keys, then values.
struct head_pair {
  index_t n;
  int head, i;
  MOESKIP_HD head_pair(index_t index, int heads, int half)
      : n(index / (index_t(heads) * half)), head(int(index / half % heads)), i(int(index % half)) {}
};

struct rope_append {
  static constexpr const char* name = "rope_append";
  mat<float> q;  // (N, H·d) or empty
  kv_layer<float> kv;
  mat<const float> qkv;
  token_rows rows;
  attention_shape s;
  MOESKIP_HD int query_heads() const { return q.data() ? s.heads : 0; }
  MOESKIP_HD void operator()(index_t index) const {
    const int H = query_heads(), G = s.kv_heads, half = s.head_dim / 2;
    const head_pair at(index, H + 2 * G, half);
    const float* in = &qkv(at.n, index_t(at.head) * s.head_dim + at.i);
    const index_t slot = rows.slot[at.n], position = rows.position[at.n];
    float a = in[0], b = in[half], *out = nullptr;
    if (at.head < H) out = &q(at.n, at.head * s.head_dim + at.i);
    else if (at.head < H + G) out = &kv.keys.plane(slot)(position, (at.head - H) * s.head_dim + at.i);
    else out = &kv.values.plane(slot)(position, (at.head - H - G) * s.head_dim + at.i);
    if (at.head < H + G) {
      const rotation r(int(position), rope_frequency(at.i, s));
      const float cosine = float(r.cosine), sine = float(r.sine), first = a;
      a = first * cosine - b * sine;
      b = b * cosine + first * sine;
    }
    out[0] = a, out[half] = b;
  }
};

struct rope_append_backward {
  static constexpr const char* name = "rope_append_backward";
  mat<float> dqkv;
  mat<const float> dq;
  kv_layer<float> dkv;
  token_rows rows;
  attention_shape s;
  MOESKIP_HD void operator()(index_t index) const {
    const int H = s.heads, G = s.kv_heads, half = s.head_dim / 2;
    const head_pair at(index, H + 2 * G, half);
    float* out = &dqkv(at.n, index_t(at.head) * s.head_dim + at.i);
    const index_t slot = rows.slot[at.n], position = rows.position[at.n];
    const float* in = nullptr;
    if (at.head < H) in = &dq(at.n, at.head * s.head_dim + at.i);
    else if (at.head < H + G) in = &dkv.keys.plane(slot)(position, (at.head - H) * s.head_dim + at.i);
    else in = &dkv.values.plane(slot)(position, (at.head - H - G) * s.head_dim + at.i);
    float a = in[0], b = in[half];
    if (at.head < H + G) {
      const rotation r(int(position), rope_frequency(at.i, s));
      const float cosine = float(r.cosine), sine = -float(r.sine), first = a;
      a = first * cosine - b * sine;
      b = b * cosine + first * sine;
    }
    out[0] = a, out[half] = b;
  }
};

}  // namespace phase

template <> struct kernel<rope_append_t, on_cuda> {
  template <class B> static void run(B&, mat<float> q, kv_layer<float> kv, mat<const float> qkv, const token_rows& rows,
                                     const attention_shape& s) {
    using call = detail::device_call<rope_append_t, B>;
    const phase::rope_append p{call::seen(q), call::seen(kv), call::seen(qkv), call::listed(rows), s};
    call::each(rows.size() * (p.query_heads() + 2 * s.kv_heads) * (s.head_dim / 2), p);
  }
};

template <> struct kernel<rope_append_backward_t, on_cuda> {
  template <class B> static void run(B&, mat<float> dqkv, mat<const float> dq, kv_layer<float> dkv,
                                     const token_rows& rows, const attention_shape& s) {
    using call = detail::device_call<rope_append_backward_t, B>;
    call::each(rows.size() * (s.heads + 2 * s.kv_heads) * (s.head_dim / 2),
               phase::rope_append_backward{call::seen(dqkv), call::seen(dq), call::seen(dkv), call::listed(rows), s});
  }
};

}  // namespace moeskip
