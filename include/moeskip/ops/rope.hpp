// Splits a fused projection into queries, keys and values, rotates queries and keys by their position, and appends
// keys and values to the cache.                                          RoPE: Su et al. 2021, arXiv:2104.09864
//   qkv (N, (H + 2G)·d)   q (N, H·d)   keys, values (S, C, G·d)
// Rotate-half convention: element i of a head is paired with i + r/2, at the angle position · theta^(-2i/r), where r is
// the number of elements that are rotated: all d, or the first ones of a head alone.
// Frequencies may be stretched for contexts longer than those of pretraining (Llama 3.1, arXiv:2407.21783).
#pragma once

#include <cmath>

#include "moeskip/ops/contract.hpp"
#include "moeskip/tensor/rows.hpp"

namespace moeskip {

/// Llama 3.1's stretching of slow rotations: those that turn at most `low` times within `original` positions are slowed
/// down by `factor`, those that turn at least `high` times stay, and between the two it is blended. factor 1: none.
struct rope_stretch {
  float factor = 1.f, low = 1.f, high = 4.f;
  int original = 8192;  // tokens: the context of pretraining
  friend constexpr bool operator==(const rope_stretch&, const rope_stretch&) = default;
};

/// The numbers of an attention: H query heads share G key/value heads of size d.
struct attention_shape {
  int heads = 0, kv_heads = 0, head_dim = 0;
  float rope_theta = 10000.f;
  float scale = 0.f;  // multiplies the scores; 1/sqrt(d) in most models
  rope_stretch stretch{};
  int rotary_dim = 0;  // rotated elements of a head, even; default: all

  MOESKIP_HD constexpr int rotated() const { return rotary_dim ? rotary_dim : head_dim; }
  MOESKIP_HD constexpr int q_dim() const { return heads * head_dim; }
  MOESKIP_HD constexpr int kv_dim() const { return kv_heads * head_dim; }
};

/// Throws unless kv is a cache (S, C, G·d) of this shape (shape_error), heads share groups evenly and every row has its
/// place in the cache (config_error).
template <class T>
void expect_kv(std::string_view op, const token_rows& rows, const kv_layer<T>& kv, const attention_shape& shape) {
  const index_t S = kv.keys.extent(0), C = kv.keys.extent(1);
  expect_shape(op, "keys", kv.keys, S, C, shape.kv_dim());
  expect_shape(op, "values", kv.values, S, C, shape.kv_dim());
  expect_shape(op, "rows.slot", rows.slot, rows.size());
  MOESKIP_CHECK(config_error, shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0, op,
                ": expected heads to be a multiple of kv_heads, got ", shape.heads, " and ", shape.kv_heads);
  for (index_t n = 0; n < rows.size(); ++n) {
    MOESKIP_CHECK(config_error, rows.slot[n] >= 0 && rows.slot[n] < S, op, ": slot ", rows.slot[n],
                  " is beyond the key/value cache of ", S, " sequences");
    MOESKIP_CHECK(config_error, rows.position[n] >= 0 && rows.position[n] < C, op, ": position ", rows.position[n],
                  " is beyond the key/value cache of ", C, " tokens");
  }
}

/// q may be empty: then qkv (N, 2G·d) holds keys and values only (an early exit that fills in skipped layers).
/// Throws shape_error, and config_error for a row that has no place in the cache.
struct rope_append_t {
  static constexpr const char* name = "rope_append";
  template <class B> void operator()(B& b, mat<scalar_t<B>> q, kv_layer<scalar_t<B>> kv, mat<const scalar_t<B>> qkv,
                                     const token_rows& rows, const attention_shape& shape) const {
    const bool with_queries = q.data() != nullptr;
    expect_shape(name, "qkv", qkv, rows.size(), (with_queries ? shape.q_dim() : 0) + 2 * shape.kv_dim());
    if (with_queries) expect_shape(name, "q", q, rows.size(), shape.q_dim());
    expect_kv(name, rows, kv, shape);
    run_kernel<rope_append_t>(b, q, kv, qkv, rows, shape);
  }
};
inline constexpr rope_append_t rope_append{};

/// dqkv (N, (H + 2G)·d) = the gradients of q and of this call's keys and values, rotated back. Throws like rope_append.
struct rope_append_backward_t {
  static constexpr const char* name = "rope_append_backward";
  template <class B> void operator()(B& b, mat<scalar_t<B>> dqkv, mat<const scalar_t<B>> dq, kv_layer<scalar_t<B>> dkv,
                                     const token_rows& rows, const attention_shape& shape) const {
    expect_shape(name, "dqkv", dqkv, rows.size(), shape.q_dim() + 2 * shape.kv_dim());
    expect_shape(name, "dq", dq, rows.size(), shape.q_dim());
    expect_kv(name, rows, dkv, shape);
    run_kernel<rope_append_backward_t>(b, dqkv, dq, dkv, rows, shape);
  }
};
inline constexpr rope_append_backward_t rope_append_backward{};

/// The angle by which a position turns pair i: theta^(-2i/r). In double: float angles lose three digits by position
/// 10,000.
MOESKIP_HD inline double rope_frequency(int i, const attention_shape& s) {
  const double frequency = std::pow(double(s.rope_theta), -2.0 * i / s.rotated());
  if (s.stretch.factor == 1.f) return frequency;
  const double turns = double(s.stretch.original) * frequency / (2 * 3.14159265358979323846);
  const double kept = (turns - double(s.stretch.low)) / double(s.stretch.high - s.stretch.low);
  const double blend = kept < 0 ? 0 : kept > 1 ? 1 : kept;
  return frequency * (blend + (1 - blend) / double(s.stretch.factor));
}

/// The rotation of one pair: cosine and sine of position · frequency.
struct rotation {
  double cosine, sine;
  MOESKIP_HD rotation(int position, double frequency)
      : cosine(std::cos(position * frequency)), sine(std::sin(position * frequency)) {}
};

namespace detail {

/// Turns each head of d numbers to its position, or back from it; what is not rotated is copied.
enum class turn { forth, back };
template <turn To, class T> void rotate_heads(T* out, const T* in, int heads, int position, const attention_shape& s) {
  const int half = s.rotated() / 2;
  for (int h = 0; h < heads; ++h)
    for (int i = s.rotated(); i < s.head_dim; ++i) out[h * s.head_dim + i] = in[h * s.head_dim + i];
  for (int i = 0; i < half; ++i) {
    const rotation r(position, rope_frequency(i, s));
    const T cosine(real_t<T>(r.cosine)), sine(real_t<T>(To == turn::forth ? r.sine : -r.sine));
    for (int h = 0; h < heads; ++h) {
      const T a = in[h * s.head_dim + i], b = in[h * s.head_dim + i + half];
      out[h * s.head_dim + i] = a * cosine - b * sine;
      out[h * s.head_dim + i + half] = b * cosine + a * sine;
    }
  }
}

}  // namespace detail

template <> struct kernel<rope_append_t, on_reference> {
  template <class B, class T>
  static void run(B&, mat<T> q, kv_layer<T> kv, mat<const T> qkv, const token_rows& rows, const attention_shape& s) {
    const int q_dim = q.data() ? s.q_dim() : 0, kv_dim = s.kv_dim();
    for (index_t n = 0; n < rows.size(); ++n) {
      const int slot = rows.slot[n], position = rows.position[n];
      const T* in = qkv.row(n).data();
      if (q_dim) detail::rotate_heads<detail::turn::forth>(q.row(n).data(), in, s.heads, position, s);
      detail::rotate_heads<detail::turn::forth>(kv.keys.plane(slot).row(position).data(), in + q_dim, s.kv_heads,
                                                position, s);
      T* value = kv.values.plane(slot).row(position).data();
      for (int i = 0; i < kv_dim; ++i) value[i] = in[q_dim + kv_dim + i];
    }
  }
};

template <> struct kernel<rope_append_backward_t, on_reference> {
  template <class B, class T>
  static void run(B&, mat<T> dqkv, mat<const T> dq, kv_layer<T> dkv, const token_rows& rows, const attention_shape& s) {
    for (index_t n = 0; n < rows.size(); ++n) {
      const int slot = rows.slot[n], position = rows.position[n];
      T* out = dqkv.row(n).data();
      detail::rotate_heads<detail::turn::back>(out, dq.row(n).data(), s.heads, position, s);
      detail::rotate_heads<detail::turn::back>(out + s.q_dim(), dkv.keys.plane(slot).row(position).data(), s.kv_heads,
                                               position, s);
      const T* dvalue = dkv.values.plane(slot).row(position).data();
      for (int i = 0; i < s.kv_dim(); ++i) out[s.q_dim() + s.kv_dim() + i] = dvalue[i];
    }
  }
};

}  // namespace moeskip
