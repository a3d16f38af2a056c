// The attention of decoding in one phase: up to 16 rows, from their projections to what they attend to. An item is a row,
// a key/value head with the group of query heads that share it, and one split of the keys that the row sees. The last
// block to finish a row's splits puts them together, in their order: no atomics on floats (split keys: Dao et al. 2023,
// crfm.stanford.edu/2023/10/12/flashdecoding.html).
// Rows of a call see each other, but a key that another block appends in this phase may not be there yet: whoever needs
// it makes it anew, as its owner does. So a row has the bits that it would have alone: what is added to what depends on
// its position, and not on the number of threads either.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "moeskip/backend/cuda/attend.hpp"
#include "moeskip/backend/cuda/projection.hpp"
#include "moeskip/backend/cuda/rope.hpp"
#include "moeskip/ops/append_attend.hpp"

namespace moeskip {

namespace phase {

/// How the keys that a row sees are cut: 64 each, and beyond 32 splits more, or a block alone would put together a lot.
struct key_splits {
  static constexpr int least = 64, most = 32;
  int length, count;
  /// The most that a row of up to so many keys has: more keys may be fewer, longer splits.
  static constexpr int most_of(int keys) { return keys < least * most ? (keys + least - 1) / least : most; }
  MOESKIP_HD explicit key_splits(int keys)
      : length(least * ((keys + least * most - 1) / (least * most))), count((keys + length - 1) / length) {}
};

/// The highest of no scores: finite, so that a score of -∞, where there is no key, weighs nothing beside it.
inline constexpr float no_score = std::numeric_limits<float>::lowest();

/// Σ exp(score − highest) value at number i of a head (d), and Σ exp(score − highest), of `count` parts put together in
/// their order. A part is d sums, its highest score and its total; parts are `apart` numbers from each other.
struct softmax_sum {
  float highest = no_score, total = 0, sum = 0;
  MOESKIP_HD softmax_sum(const float* parts, index_t apart, int count, int d, int i) {
    constexpr int at_once = 8;  // asked for before the first is used
    for (int first = 0; first < count; first += at_once, parts += at_once * apart) {
      float highest_of[at_once], total_of[at_once], sum_of[at_once], now = highest;
      for (int k = 0; k < at_once; ++k) {
        const bool there = first + k < count;
        highest_of[k] = there ? parts[k * apart + d] : no_score;
        total_of[k] = there ? parts[k * apart + d + 1] : 0.f;
        sum_of[k] = there ? parts[k * apart + i] : 0.f;
      }
      for (const float h : highest_of) now = h > now ? h : now;
      const float shrink = std::exp(highest - now);
      total *= shrink, sum *= shrink, highest = now;
      for (int k = 0; k < at_once; ++k) {
        const float weight = std::exp(highest_of[k] - now);
        total += weight * total_of[k], sum += weight * sum_of[k];
      }
    }
  }
};

/// Columns of a projected row, with their bias if there is one.
template <class W> struct biased_columns {
  const float* x;
  const W* bias;
  MOESKIP_HD float operator[](index_t i) const { return bias ? x[i] + to<float>(bias[i]) : x[i]; }
};

template <class W> struct append_attend {
  static constexpr const char* name = "append_attend";
  static constexpr int barriers = 5;
  static constexpr int threads = 512, blocks_at_once = 1;  // of a kernel of its own; any number of warps will do
  static constexpr bool strides = true;                    // and of blocks
  static constexpr bool memory_idles = true;               // keys are few beside weights
  // A strip: keys that a warp takes one after the other, a pair for each team of lanes, and then 16 strips on.
  static constexpr int strips = 16, keys_at_once = 2;
  // Of a group at once: they share one reading of the keys. Three already take all registers that 512 threads have.
  static constexpr int most_heads = 2;

  mat<float> out;        // (N, H·d)
  mat<const float> qkv;  // (N, (H + 2G)·d)
  kv_layer<float> kv;
  qkv_adjustment<W> adjustment;
  token_rows rows;
  vec<const double> frequency;  // (r / 2) of rotations: powers in double are what blocks should not repeat
  attention_shape s;
  int splits;               // of a row there is room for
  mat<float> parts{};       // (N·H·splits, d + 2), where there are several: softmax_sum's
  int* finished = nullptr;  // (N·G) splits of a row and key/value head

  MOESKIP_HD static int width(const attention_shape& s) { return (s.head_dim + pack - 1) / pack * pack; }
  MOESKIP_HD static int group(const attention_shape& s) { return s.heads / s.kv_heads; }
  MOESKIP_HD static int heads_at_once(const attention_shape& s) {
    const int fit = s.head_dim > 128 ? 1 : most_heads;  // so that all stays under 48 KiB
    return group(s) < fit ? group(s) : fit;
  }

  /// What a block shares, in floats.
  struct memory {
    float* queries;        // (heads at once, width)
    float* keys;           // (N, width) those of this call that the item sees
    float* sums;           // (strips, heads at once, d + 2) softmax_sum's
    float *cosine, *sine;  // (d / 2) of the row's position
    float* scale;          // (group + N) 1 / rms of its queries, and of the keys
    float* last;           // whether this block is
    MOESKIP_HD memory(float* at, index_t N, const attention_shape& s)
        : queries(at),
          keys(queries + heads_at_once(s) * width(s)),
          sums(keys + N * width(s)),
          cosine(sums + strips * heads_at_once(s) * (s.head_dim + 2)),
          sine(cosine + s.head_dim / 2),
          scale(sine + s.head_dim / 2),
          last(scale + group(s) + N) {}
  };
  MOESKIP_HD static index_t shared(index_t N, const attention_shape& s) {
    const index_t d = s.head_dim, of_head = width(s) + strips * (d + 2);
    return heads_at_once(s) * of_head + N * width(s) + d + group(s) + N + 1;
  }

  /// Row n, key/value head g, and the keys [begin, end) of a split; oldest: the first position of the slot that this
  /// call brings.
  struct item {
    int n, g, split, slot, position, begin, end, splits, oldest;
    MOESKIP_HD item(const append_attend& a, int index, int most)
        : n(index / most / a.s.kv_heads),
          g(index / most % a.s.kv_heads),
          split(index % most),
          slot(a.rows.slot[n]),
          position(a.rows.position[n]) {
      const key_splits cut(position + 1);
      splits = cut.count, begin = split * cut.length;
      end = begin + cut.length < position + 1 ? begin + cut.length : position + 1;
      oldest = position;
      for (int m = 0; m < a.rows.size(); ++m)
        if (a.rows.slot[m] == slot && a.rows.position[m] < oldest) oldest = a.rows.position[m];
    }
    MOESKIP_HD bool sees(const token_rows& of, int m) const {
      return of.slot[m] == slot && of.position[m] >= begin && of.position[m] < end;
    }
  };

  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    const memory in(b.shared(), rows.size(), s);
    int most = 1;  // splits that a row has now: items are numbered by it, so that they lie close
    for (int n = 0; n < rows.size(); ++n) {
      const int count = key_splits(rows.position[n] + 1).count;
      most = count > most ? count : most;
    }
    for (int i = int(b.block()); i < rows.size() * s.kv_heads * most; i += int(b.blocks()))
      if (const item at(*this, i, most); at.begin < at.end) make(b, at, in);
  }

 private:
  template <class Block> MOESKIP_HD void make(const Block& b, const item& at, const memory& in) const {
    prepare(b, at, in);
    b.sync(0);
    append(b, at, in);
    for (int first = 0; first < group(s); first += heads_at_once(s)) {
      const int heads = group(s) - first < heads_at_once(s) ? group(s) - first : heads_at_once(s);
      take_queries(b, at, in, first, heads);
      b.sync(1);
      for (int strip = b.warp(); strip < strips; strip += b.warps()) attend_strip(b, at, in, strip, heads);
      b.sync(2);
      put_strips_together(b, at, in, first, heads);
    }
    if (at.splits == 1) return;
    b.sync(3);
    if (b.thread() == 0) *in.last = b.last_of(at.splits, finished + at.n * s.kv_heads + at.g) ? 1.f : 0.f;
    b.sync(4);
    if (*in.last == 1.f) put_splits_together(b, at);
  }

  MOESKIP_HD index_t key_column(int g) const { return s.q_dim() + g * s.head_dim; }
  MOESKIP_HD index_t value_column(int g) const { return key_column(g) + s.kv_dim(); }
  MOESKIP_HD biased_columns<W> columns(index_t n, index_t first) const {
    return {&qkv(n, first), adjustment.bias.data() ? adjustment.bias.data() + first : nullptr};
  }

  /// 1 / rms of the columns that are normalised together with a head, which is the h-th of those from `first` on.
  template <class Block>
  MOESKIP_HD float scale_of(const Block& b, index_t n, index_t first, int h, const vec<const W>& gain) const {
    const index_t together = h * s.head_dim / gain.size() * gain.size();
    return reciprocal_rms(b, columns(n, first + together), gain.size(), adjustment.eps);
  }

  /// Pair `at` of that head, normalised.
  struct pair_values {
    float a, b;
  };
  MOESKIP_HD pair_values pair_of(const head_pair& at, index_t n, index_t first, int h, const vec<const W>& gain,
                                 const float* scale) const {
    const index_t head = h * s.head_dim;
    const biased_columns<W> x = columns(n, first + head);
    pair_values p{x[at.first], x[at.first + at.apart]};
    if (gain.data()) {
      const W* by = gain.data() + head % gain.size() + at.first;
      p.a = p.a * *scale * to<float>(by[0]), p.b = p.b * *scale * to<float>(by[at.apart]);
    }
    return p;
  }

  /// Scales of norms, by a warp each, and the turns of the row's position; the last threads begin with those.
  template <class Block> MOESKIP_HD void prepare(const Block& b, const item& at, const memory& in) const {
    for (int job = b.warp(); job < group(s) + rows.size(); job += b.warps()) {
      const int m = job - group(s);
      float scale = 1;
      if (m < 0 && adjustment.q_gain.data()) scale = scale_of(b, at.n, 0, at.g * group(s) + job, adjustment.q_gain);
      if (m >= 0 && adjustment.k_gain.data() && at.sees(rows, m))
        scale = scale_of(b, m, key_column(0), at.g, adjustment.k_gain);
      if (b.lane() == 0) in.scale[job] = scale;
    }
    for (int pair = b.threads() - 1 - b.thread(); pair < s.rotated() / 2; pair += b.threads()) {
      const pair_turn turn(at.position, frequency[pair]);
      in.cosine[pair] = turn.cosine, in.sine[pair] = turn.sine;
    }
  }

  /// The keys of this call among the split's; the row's own, and its value, go to the cache.
  template <class Block> MOESKIP_HD void append(const Block& b, const item& at, const memory& in) const {
    const int pairs = s.head_dim / 2, offset = at.g * s.head_dim;
    for (int index = b.thread(); index < rows.size() * pairs; index += b.threads()) {
      const int m = index / pairs;
      if (!at.sees(rows, m)) continue;
      const head_pair pair(index % pairs, s);
      pair_values p = pair_of(pair, m, key_column(0), at.g, adjustment.k_gain, in.scale + group(s) + m);
      if (pair.turns) {
        const pair_turn turn =
            m == at.n ? pair_turn{in.cosine[pair.i], in.sine[pair.i]} : pair_turn(rows.position[m], frequency[pair.i]);
        turn(p.a, p.b);
      }
      float* key = in.keys + m * width(s) + pair.first;
      key[0] = p.a, key[pair.apart] = p.b;
      if (m != at.n) continue;
      float* cached = &kv.keys.plane(at.slot)(at.position, offset + pair.first);
      cached[0] = p.a, cached[pair.apart] = p.b;
    }
    if (!at.sees(rows, at.n)) return;
    float* value = &kv.values.plane(at.slot)(at.position, offset);
    const biased_columns<W> x = columns(at.n, value_column(at.g));
    for (int i = b.thread(); i < s.head_dim; i += b.threads()) value[i] = x[i];
  }

  /// Heads from `first` of the group on.
  template <class Block>
  MOESKIP_HD void take_queries(const Block& b, const item& at, const memory& in, int first, int heads) const {
    const int pairs = s.head_dim / 2;
    for (int index = b.thread(); index < heads * pairs; index += b.threads()) {
      const int h = index / pairs;
      const head_pair pair(index % pairs, s);
      pair_values p = pair_of(pair, at.n, 0, at.g * group(s) + first + h, adjustment.q_gain, in.scale + first + h);
      if (pair.turns) pair_turn{in.cosine[pair.i], in.sine[pair.i]}(p.a, p.b);
      float* query = in.queries + h * width(s) + pair.first;
      query[0] = p.a, query[pair.apart] = p.b;
    }
  }

  /// Numbers i … i + 7 of key j and of its value: from the cache, or made of the row of this call that brings them.
  MOESKIP_HD void load(float (&key)[pack], float (&value)[pack], const item& at, const memory& in, int j, int i) const {
    const int d = s.head_dim, offset = at.g * d;
    int brought = -1;
    for (int m = 0; j >= at.oldest && m < rows.size(); ++m)
      if (rows.slot[m] == at.slot && rows.position[m] == j) brought = m;
    if (brought < 0) {
      load_pack(key, &kv.keys.plane(at.slot)(j, offset), i, d);
      load_pack(value, &kv.values.plane(at.slot)(j, offset), i, d);
      return;
    }
    const biased_columns<W> x = columns(brought, value_column(at.g));
    load_pack(key, in.keys + brought * width(s), i, d);
    for (int k = 0; k < pack; ++k) value[k] = i + k < d ? x[i + k] : 0.f;
  }

  /// A team of lanes has a key: eight numbers of a head each.
  template <class Block>
  MOESKIP_HD void attend_strip(const Block& b, const item& at, const memory& in, int strip, int heads) const {
    const int d = s.head_dim;
    int lanes = 1;
    while (lanes * pack < d) lanes *= 2;
    const int teams = 32 / lanes, team = b.lane() / lanes, i = b.lane() % lanes * pack;
    float highest[most_heads], total[most_heads] = {}, sum[most_heads][pack] = {};
    for (float& h : highest) h = no_score;
    const int begin = at.begin + strip * teams * keys_at_once;
    for (int first = begin; first < at.end; first += strips * teams * keys_at_once) {
      const int mine = first + team * keys_at_once;
      float key[keys_at_once][pack] = {}, value[keys_at_once][pack] = {};
      unrolled<keys_at_once>([&](auto k) {
        if (mine + k < at.end) load(key[k], value[k], at, in, mine + k, i);
      });
      unrolled<most_heads>([&](auto h) {
        if (h >= heads) return;
        float query[pack], score[keys_at_once], now = highest[h];
        load_pack(query, in.queries + h * width(s), i, d);
        unrolled<keys_at_once>([&](auto k) {
          float product = 0;
          for (int j = 0; j < pack; ++j) product += query[j] * key[k][j];
          for (int m = lanes / 2; m; m /= 2) product += b.warp_xor(product, m);
          score[k] = mine + k < at.end ? product * s.scale : -INFINITY;
          now = score[k] > now ? score[k] : now;
        });
        const float shrink = std::exp(highest[h] - now);
        highest[h] = now, total[h] *= shrink;
        for (float& part : sum[h]) part *= shrink;
        unrolled<keys_at_once>([&](auto k) {
          const float p = std::exp(score[k] - now);
          total[h] += p;
          for (int j = 0; j < pack; ++j) sum[h][j] += p * value[k][j];
        });
      });
    }
    unrolled<most_heads>([&](auto h) {
      if (h >= heads) return;
      for (int m = begin < at.end ? lanes : 32; m < 32; m *= 2) {  // nothing where it has no keys
        const float other = b.warp_xor(highest[h], m), now = other > highest[h] ? other : highest[h];
        const float ours = std::exp(highest[h] - now), theirs = std::exp(other - now);
        total[h] = total[h] * ours + b.warp_xor(total[h], m) * theirs;
        for (float& part : sum[h]) part = part * ours + b.warp_xor(part, m) * theirs;
        highest[h] = now;
      }
      float* to = in.sums + (strip * heads_at_once(s) + h) * (d + 2);
      if (team == 0)  // the lanes of others have added the same in another order
        for (int j = 0; j < pack; ++j)
          if (i + j < d) to[i + j] = sum[h][j];
      if (b.lane() == 0) to[d] = highest[h], to[d + 1] = total[h];
    });
  }

  MOESKIP_HD float* part(const item& at, int head, int split) const {
    return &parts((at.n * s.heads + head) * splits + split, 0);
  }
  template <class Block>
  MOESKIP_HD void put_strips_together(const Block& b, const item& at, const memory& in, int first, int heads) const {
    const int d = s.head_dim;
    for (int index = b.thread(); index < heads * d; index += b.threads()) {
      const int h = index / d, i = index % d, head = at.g * group(s) + first + h;
      const softmax_sum made(in.sums + h * (d + 2), heads_at_once(s) * (d + 2), strips, d, i);
      if (at.splits == 1) {
        out(at.n, head * d + i) = made.sum / made.total;
        continue;
      }
      float* to = part(at, head, at.split);
      to[i] = made.sum;
      if (i == 0) to[d] = made.highest, to[d + 1] = made.total;
    }
  }
  template <class Block> MOESKIP_HD void put_splits_together(const Block& b, const item& at) const {
    const int d = s.head_dim;
    for (int index = b.thread(); index < group(s) * d; index += b.threads()) {
      const int head = at.g * group(s) + index / d, i = index % d;
      const softmax_sum made(part(at, head, 0), d + 2, at.splits, d, i);
      out(at.n, head * d + i) = made.sum / made.total;
    }
  }
};

}  // namespace phase

template <> struct kernel<append_attend_t, on_cuda> {
  template <class B, class W, class Memory> static void run(B& b, mat<float> out, mat<float> qkv, kv_layer<float> kv,
                                                            const token_rows& rows, const qkv_adjustment<W>& adjustment,
                                                            const attention_shape& s, Memory& memory) {
    using call = detail::device_call<append_attend_t, B>;
    if (rows.size() > detail::invariant_rows)
      return append_attend_t::composed(b, out, qkv, kv, rows, adjustment, s, memory);
    detail::expect_head_dim(s);
    const auto scope = call::scratch().scope();
    // A script knows no positions yet: it has room for what any row of the cache may ask for.
    int splits = script_steps::open() ? phase::key_splits::most_of(int(kv.keys.extent(1))) : 1;
    for (const int position : rows.position) splits = std::max(splits, phase::key_splits(position + 1).count);
    phase::append_attend<W> p{call::seen(out),
                              call::seen(qkv),
                              call::seen(kv),
                              adjustment,
                              call::listed(rows),
                              call::listed(detail::rope_frequencies(s)),
                              s,
                              splits};
    call::seen(adjustment.bias), call::seen(adjustment.q_gain), call::seen(adjustment.k_gain);
    if (splits > 1) {
      p.parts = call::scratch().template take<float>(rows.size() * s.heads * splits, s.head_dim + 2);
      p.finished = call::counters(rows.size() * s.kv_heads);
    }
    call::launch({rows.size() * s.kv_heads * splits, phase::append_attend<W>::threads,
                  phase::append_attend<W>::shared(rows.size(), s)},
                 p);
  }
};

}  // namespace moeskip
