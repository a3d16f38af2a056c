// Attention of many rows on tensor cores: a block takes 64 rows and a head through their keys, 64 at a time, with a
// running softmax that never leaves registers (Dao 2023, arXiv:2307.08691). Queries, keys, values and probabilities are
// rounded to bf16; scores, their softmax and all sums are f32.
// Backward makes everything anew from q: a block of rows their log-sums, then dq; a block of keys what all rows send to
// them, in the order of the rows. No atomics: the same bits every time.
#pragma once

#include <cmath>
#include <vector>

#include "moeskip/backend/cuda/backend.hpp"
#include "moeskip/backend/cuda/fragments.hpp"
#include "moeskip/ops/attend.hpp"

namespace moeskip {

namespace phase {

/// What these phases share. Columns: numbers of a head, or more; zero behind them.
template <int Columns> struct attention_tiles {
  static constexpr int side = 64;                                          // rows, keys of a tile
  static constexpr int warps = side / 16, threads = 32 * warps;            // a warp has 16 of a tile's rows
  static constexpr int stride = row_words(Columns), tile = side * stride;  // words
  static constexpr int wide = Columns / 8, deep = Columns / 16;            // products across a head

  mat<const float> q;  // (N, H·d)
  kv_layer<float> kv;
  token_rows rows;
  attention_shape s;

  /// to = `count` rows of a head, in bf16, and zero up to `of` rows.
  template <class Row> MOESKIP_HD void load(std::uint32_t* to, int count, int of, int thread, const Row& row) const {
    constexpr int packs = Columns / pack;
    for (int at = thread; at < of * packs; at += threads) {
      const int r = at / packs, i = at % packs * pack;
      float value[pack] = {};
      if (r < count) load_pack(value, row(r), i, s.head_dim);
      *reinterpret_cast<packed_words*>(to + r * stride + i / 2) = pack_words(value);
    }
  }

  /// sum += 16 rows of `left` times the transpose of 8 · Count rows of `right`, over a head.
  template <class Block, int Count> MOESKIP_HD static void multiply(const Block& b, float (&sum)[Count][4],
                                                                    const std::uint32_t* left,
                                                                    const std::uint32_t* right) {
    for (int step = 0; step < deep; ++step) {
      std::uint32_t a[4], c[2];
      load_left(a, left + 8 * step, stride, b.lane());
      for (int j = 0; j < Count; ++j) {
        load_right(c, right + 8 * j * stride + 8 * step, stride, b.lane());
        b.multiply_add(sum[j], a, c);
      }
    }
  }
  /// sum (16, head) += p (16, 8 · Count), rounded, times as many rows of `right`.
  template <class Block, int Count> MOESKIP_HD static void multiply_rows(const Block& b, float (&sum)[wide][4],
                                                                         const float (&p)[Count][4],
                                                                         const std::uint32_t* right) {
    for (int step = 0; step < Count / 2; ++step) {
      std::uint32_t a[4], c[2];
      sums_as_left(a, p[2 * step], p[2 * step + 1]);
      for (int j = 0; j < wide; ++j) {
        load_right_rows(b, c, right + 16 * step * stride + 4 * j, stride);
        b.multiply_add(sum[j], a, c);
      }
    }
  }

  /// Where rows of a tile stand, in shared memory.
  struct places {
    int *slot, *position;
    MOESKIP_HD explicit places(std::uint32_t* at) : slot(reinterpret_cast<int*>(at)), position(slot + side) {}
  };
  MOESKIP_HD void load_places(const places& to, index_t first, int here, int of, int thread) const {
    if (thread >= of) return;
    to.slot[thread] = thread < here ? rows.slot[first + thread] : -1;
    to.position[thread] = thread < here ? rows.position[first + thread] : -1;
  }

  /// f(k, limit) for every tile of keys that some row sees, its keys and values in shared memory: k, the tile's first
  /// key; limit (2), the last that this lane's upper and lower row see, -1: none. Rows of one sequence that stand
  /// together go through their keys together.
  template <class Block, class F> MOESKIP_HD void each_tile(const Block& b, int here, int offset, const places& at,
                                                            std::uint32_t* keys, std::uint32_t* values,
                                                            const F& f) const {
    for (int run = 0, end = 0; run < here; run = end) {
      int last = 0;
      for (end = run; end < here && at.slot[end] == at.slot[run]; ++end)
        last = at.position[end] > last ? at.position[end] : last;
      const mat<const float> all_keys = kv.keys.plane(at.slot[run]), all_values = kv.values.plane(at.slot[run]);
      int limit[2];
      for (int i = 0; i < 2; ++i) {
        const int row = 16 * b.warp() + sum_row(2 * i, b.lane());
        limit[i] = row >= run && row < end ? at.position[row] : -1;
      }
      for (int k = 0; k <= last; k += side) {
        const int count = last + 1 - k < side ? last + 1 - k : side;
        b.sync(1);  // the tile before has been read
        load(keys, count, side, b.thread(), [&](int j) { return &all_keys(k + j, offset); });
        load(values, count, side, b.thread(), [&](int j) { return &all_values(k + j, offset); });
        b.sync(2);
        f(k, limit);
      }
    }
  }

  MOESKIP_HD int rows_here(index_t first) const {
    return int(rows.size() - first < side ? rows.size() - first : index_t(side));
  }
  MOESKIP_HD int kv_offset(int head) const { return head * s.kv_heads / s.heads * s.head_dim; }
};

/// Forward; with dout instead of out, what backward needs first: log_sum = log Σ exp of a row's scores, and
/// mean = Σ_j p_j dp_j = dout · out.
template <int Columns> struct attend_tiles {
  using shape = attention_tiles<Columns>;
  static constexpr const char* name = "attend_tiles";
  static constexpr int barriers = 3, threads = shape::threads, shared = 3 * shape::tile + 2 * shape::side;
  shape of;
  mat<float> out;            // (N, H·d) or empty
  mat<const float> dout;     // (N, H·d) or empty
  mat<float> log_sum, mean;  // (N, H)

  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    const attention_shape& s = of.s;
    const index_t first = b.block() / s.heads * shape::side;
    const int head = int(b.block() % s.heads), here = of.rows_here(first), d = s.head_dim;
    auto* const queries = reinterpret_cast<std::uint32_t*>(b.shared());
    std::uint32_t *const keys = queries + shape::tile, *const values = keys + shape::tile;
    const typename shape::places at(values + shape::tile);
    of.load_places(at, first, here, shape::side, b.thread());
    of.load(queries, here, shape::side, b.thread(), [&](int r) { return &of.q(first + r, head * d); });
    b.sync(0);
    float sum[shape::wide][4] = {}, highest[2] = {-INFINITY, -INFINITY}, total[2] = {};
    of.each_tile(b, here, of.kv_offset(head), at, keys, values, [&](int k, const int(&limit)[2]) {
      float p[shape::side / 8][4] = {};
      shape::multiply(b, p, queries + 16 * b.warp() * shape::stride, keys);
      float now[2] = {highest[0], highest[1]}, base[2], shrink[2];
      for (int j = 0; j < shape::side / 8; ++j)
        for (int v = 0; v < 4; ++v) {
          p[j][v] = k + 8 * j + sum_col(v, b.lane()) <= limit[v / 2] ? p[j][v] * s.scale : -INFINITY;
          now[v / 2] = p[j][v] > now[v / 2] ? p[j][v] : now[v / 2];
        }
      for (int i = 0; i < 2; ++i) {
        now[i] = row_max(b, now[i]);
        base[i] = now[i] == -INFINITY ? 0.f : now[i];  // the row has seen no key
        shrink[i] = std::exp(highest[i] - base[i]);
        highest[i] = now[i], total[i] *= shrink[i];
      }
      for (int j = 0; j < shape::side / 8; ++j)
        for (int v = 0; v < 4; ++v) {
          p[j][v] = std::exp(p[j][v] - base[v / 2]);
          total[v / 2] += p[j][v];
        }
      for (int j = 0; j < shape::wide; ++j)
        for (int v = 0; v < 4; ++v) sum[j][v] *= shrink[v / 2];
      shape::multiply_rows(b, sum, p, values);
    });
    float product[2] = {};
    for (float& t : total) t = row_sum(b, t);
    for (int j = 0; j < shape::wide; ++j)
      for (int v = 0; v < 4; ++v) {
        const int row = 16 * b.warp() + sum_row(v, b.lane()), col = 8 * j + sum_col(v, b.lane());
        if (row >= here || col >= d) continue;
        const float made = sum[j][v] / total[v / 2];
        if (out.data()) out(first + row, head * d + col) = made;
        else product[v / 2] += made * dout(first + row, head * d + col);
      }
    if (out.data()) return;
    for (int i = 0; i < 2; ++i) {
      const int row = 16 * b.warp() + sum_row(2 * i, b.lane());
      const float dot = row_sum(b, product[i]);
      if (row >= here || b.lane() % 4 != 0) continue;
      log_sum(first + row, head) = highest[i] + std::log(total[i]), mean(first + row, head) = dot;
    }
  }
};

/// dq of 64 rows and a head.
template <int Columns> struct attend_tiles_queries {
  using shape = attention_tiles<Columns>;
  static constexpr const char* name = "attend_tiles_queries";
  static constexpr int barriers = 3, threads = shape::threads, shared = 4 * shape::tile + 2 * shape::side;
  shape of;
  mat<float> dq;                         // (N, H·d)
  mat<const float> dout, log_sum, mean;  // (N, H·d) (N, H) (N, H)

  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    const attention_shape& s = of.s;
    const index_t first = b.block() / s.heads * shape::side;
    const int head = int(b.block() % s.heads), here = of.rows_here(first), d = s.head_dim;
    auto* const queries = reinterpret_cast<std::uint32_t*>(b.shared());
    std::uint32_t *const gradients = queries + shape::tile, *const keys = gradients + shape::tile,
                         *const values = keys + shape::tile;
    const typename shape::places at(values + shape::tile);
    of.load_places(at, first, here, shape::side, b.thread());
    of.load(queries, here, shape::side, b.thread(), [&](int r) { return &of.q(first + r, head * d); });
    of.load(gradients, here, shape::side, b.thread(), [&](int r) { return &dout(first + r, head * d); });
    b.sync(0);
    float lse[2], average[2], sum[shape::wide][4] = {};
    for (int i = 0; i < 2; ++i) {
      const int row = 16 * b.warp() + sum_row(2 * i, b.lane());
      lse[i] = row < here ? log_sum(first + row, head) : 0.f, average[i] = row < here ? mean(first + row, head) : 0.f;
    }
    of.each_tile(b, here, of.kv_offset(head), at, keys, values, [&](int k, const int(&limit)[2]) {
      float p[shape::side / 8][4] = {}, dp[shape::side / 8][4] = {};
      shape::multiply(b, p, queries + 16 * b.warp() * shape::stride, keys);
      shape::multiply(b, dp, gradients + 16 * b.warp() * shape::stride, values);
      for (int j = 0; j < shape::side / 8; ++j)
        for (int v = 0; v < 4; ++v) {
          const bool seen = k + 8 * j + sum_col(v, b.lane()) <= limit[v / 2];
          const float dscore = std::exp(p[j][v] * s.scale - lse[v / 2]) * (dp[j][v] - average[v / 2]) * s.scale;
          p[j][v] = seen ? dscore : 0.f;
        }
      shape::multiply_rows(b, sum, p, keys);
    });
    for (int j = 0; j < shape::wide; ++j)
      for (int v = 0; v < 4; ++v) {
        const int row = 16 * b.warp() + sum_row(v, b.lane()), col = 8 * j + sum_col(v, b.lane());
        if (row < here && col < d) dq(first + row, head * d + col) = sum[j][v];
      }
  }
};

/// What all rows that see them send to 64 keys of a group of heads and to their values. Rows of slot s are among
/// [first[s], end[s]).
template <int Columns> struct attend_tiles_keys {
  using shape = attention_tiles<Columns>;
  static constexpr const char* name = "attend_tiles_keys";
  static constexpr int side = 32;  // rows at a time: sums of keys and values fill the registers
  static constexpr int barriers = 3, threads = shape::threads;
  static constexpr int shared = 2 * shape::tile + 2 * side * shape::stride + 2 * shape::side + 2 * side;
  shape of;
  kv_layer<float> dkv;
  mat<const float> dout, log_sum, mean;  // (N, H·d) (N, H) (N, H)
  vec<const int> first, end;             // (S)

  MOESKIP_HD index_t key_tiles() const { return (of.kv.keys.extent(1) + shape::side - 1) / shape::side; }

  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    const attention_shape& s = of.s;
    const int group = int(b.block() % s.kv_heads), d = s.head_dim, heads = s.heads / s.kv_heads, offset = group * d;
    const index_t slot = b.block() / s.kv_heads / key_tiles(), C = of.kv.keys.extent(1);
    const int k = int(b.block() / s.kv_heads % key_tiles()) * shape::side,
              known = C - k < shape::side ? int(C) - k : shape::side;
    const mat<const float> all_keys = of.kv.keys.plane(slot), all_values = of.kv.values.plane(slot);
    auto* const keys = reinterpret_cast<std::uint32_t*>(b.shared());
    std::uint32_t *const values = keys + shape::tile, *const queries = values + shape::tile,
                         *const gradients = queries + side * shape::stride;
    const typename shape::places at(gradients + side * shape::stride);
    auto *const lse = reinterpret_cast<float*>(at.position + shape::side), *const average = lse + side;
    of.load(keys, known, shape::side, b.thread(), [&](int j) { return &all_keys(k + j, offset); });
    of.load(values, known, shape::side, b.thread(), [&](int j) { return &all_values(k + j, offset); });
    float dkey[shape::wide][4] = {}, dvalue[shape::wide][4] = {};
    const int mine = 16 * b.warp();
    for (int head = group * heads; head < (group + 1) * heads; ++head)
      for (index_t n = first[slot]; n < end[slot]; n += side) {
        const int here = end[slot] - n < side ? int(end[slot] - n) : side;
        b.sync(0);  // the tile before has been read
        of.load_places(at, n, here, side, b.thread());
        b.sync(1);
        bool needed = false;
        for (int r = 0; r < here; ++r) needed |= at.slot[r] == slot && at.position[r] >= k;
        if (!needed) continue;
        of.load(queries, here, side, b.thread(), [&](int r) { return &of.q(n + r, head * d); });
        of.load(gradients, here, side, b.thread(), [&](int r) { return &dout(n + r, head * d); });
        if (b.thread() < here)
          lse[b.thread()] = log_sum(n + b.thread(), head), average[b.thread()] = mean(n + b.thread(), head);
        b.sync(2);
        float p[side / 8][4] = {}, dscore[side / 8][4] = {};
        shape::multiply(b, p, keys + mine * shape::stride, queries);
        shape::multiply(b, dscore, values + mine * shape::stride, gradients);
        for (int j = 0; j < side / 8; ++j)
          for (int v = 0; v < 4; ++v) {
            const int r = 8 * j + sum_col(v, b.lane()), key = k + mine + sum_row(v, b.lane());
            const bool sees = r < here && at.slot[r] == slot && at.position[r] >= key;
            p[j][v] = sees ? std::exp(p[j][v] * s.scale - lse[r]) : 0.f;
            dscore[j][v] = sees ? p[j][v] * (dscore[j][v] - average[r]) * s.scale : 0.f;
          }
        shape::multiply_rows(b, dvalue, p, gradients);
        shape::multiply_rows(b, dkey, dscore, queries);
      }
    for (int j = 0; j < shape::wide; ++j)
      for (int v = 0; v < 4; ++v) {
        const int key = mine + sum_row(v, b.lane()), col = 8 * j + sum_col(v, b.lane());
        if (key >= known || col >= d) continue;
        dkv.keys.plane(slot)(k + key, offset + col) += dkey[j][v];
        dkv.values.plane(slot)(k + key, offset + col) += dvalue[j][v];
      }
  }
};

}  // namespace phase

namespace detail {

template <class Call, int Columns> struct tiled_attention {
  using shape = phase::attention_tiles<Columns>;

  static index_t blocks(const shape& of) { return ceiling(of.rows.size(), shape::side) * of.s.heads; }

  static void forward(mat<float> out, const shape& of) {
    using P = phase::attend_tiles<Columns>;
    Call::launch({blocks(of), P::threads, P::shared}, P{of, out, {}, {}, {}});
  }
  static void backward(mat<float> dq, kv_layer<float> dkv, mat<const float> dout, const shape& of,
                       const token_rows& rows) {
    using sums = phase::attend_tiles<Columns>;
    using queries = phase::attend_tiles_queries<Columns>;
    using keys = phase::attend_tiles_keys<Columns>;
    const index_t N = rows.size(), S = of.kv.keys.extent(0);
    std::vector<int> first, end;  // (S) the rows among which those of a slot are
    first.assign(std::size_t(S), int(N)), end.assign(std::size_t(S), 0);
    for (index_t n = N - 1; n >= 0; --n) first[std::size_t(rows.slot[n])] = int(n);
    for (index_t n = 0; n < N; ++n) end[std::size_t(rows.slot[n])] = int(n) + 1;
    const mat<float> log_sum = Call::scratch().template take<float>(N, of.s.heads);
    const mat<float> mean = Call::scratch().template take<float>(N, of.s.heads);
    const keys to_keys{of, dkv, dout, log_sum, mean, Call::listed(first), Call::listed(end)};
    Call::launch({blocks(of), sums::threads, sums::shared}, sums{of, {}, dout, log_sum, mean});
    Call::launch({blocks(of), queries::threads, queries::shared}, queries{of, dq, dout, log_sum, mean});
    Call::launch({S * to_keys.key_tiles() * of.s.kv_heads, keys::threads, keys::shared}, to_keys);
  }
};

}  // namespace detail

}  // namespace moeskip
