// The tiled matrix product of prefill and training, for one matrix or for one of each expert:
//   c_g(r, c) = base_g(r, c) + Σ_k a_g(r, k) b_g(c, k)             a group g: an expert, or all there is
// 64 × 64 outputs a block of 256 threads, 16 products deep at a time through shared memory, in f32. An operand says how
// far apart its neighbours lie, so transposed ones are no case of their own. With experts, either the rows of c or the
// depth are the group's assignments, which may stand for gathered rows.
#pragma once

#include "moeskip/backend/cuda/block.hpp"
#include "moeskip/backend/cuda/rowwise.hpp"

namespace moeskip {

namespace phase {

/// Which of an operand's two indices counts the assignments of a group.
enum class assigned { none, rows, depth };

template <class W> struct operand {
  const W* data = nullptr;
  index_t row_step = 0, depth_step = 0;
  index_t group_step = 0;
  assigned by = assigned::none;
  const int* gather = nullptr;  // assignment -> row of data; null: they lie in order
  MOESKIP_HD float at(int group, index_t first, index_t row, index_t depth) const {
    if (by == assigned::rows) row = gather ? gather[first + row] : first + row;
    if (by == assigned::depth) depth = gather ? gather[first + depth] : first + depth;
    return to<float>(data[group * group_step + row * row_step + depth * depth_step]);
  }
};

template <class W> struct product {
  static constexpr const char* name = "product";
  static constexpr int barriers = 2;
  static constexpr int tile = 64, deep = 16, each = 4;  // a thread makes each × each outputs
  static constexpr int threads = (tile / each) * (tile / each), padded = tile + 1, shared = 2 * deep * padded;

  operand<float> a;
  operand<W> b;
  float* c = nullptr;           // (rows, cols) of every group
  const float* base = nullptr;  // laid out like c, may be c; null: nothing is added
  index_t rows = 0, cols = 0, depth = 0;
  index_t c_group_step = 0;
  const int* first = nullptr;  // (groups + 1) assignments; null: one group
  int groups = 1;
  assigned by =
      assigned::none;  // what varies from group to group: c's rows, which then begin at first[g], or the depth

  struct place {
    int group;
    index_t first, row, col, rows, depth;
  };
  MOESKIP_HD index_t col_tiles() const { return (cols + tile - 1) / tile; }

  /// The tile of a block; group -1: there is none.
  MOESKIP_HD place find(index_t block) const {
    const index_t col = block % col_tiles() * tile;
    index_t row_tile = block / col_tiles();
    for (int g = 0; g < groups; ++g) {
      const index_t from = first ? first[g] : 0, count = first ? first[g + 1] - from : 0;
      const index_t have = by == assigned::rows ? count : rows, tiles = (have + tile - 1) / tile;
      if (row_tile < tiles) return {g, from, row_tile * tile, col, have, by == assigned::depth ? count : depth};
      row_tile -= tiles;
    }
    return {-1, 0, 0, 0, 0, 0};
  }

  template <class X> MOESKIP_HD static void load(float* out, const operand<X>& from, const place& p, index_t row,
                                                 index_t rows_left, index_t k, int thread) {
    for (int i = thread; i < tile * deep; i += threads) {
      const bool along_depth = from.depth_step == 1;  // neighbouring threads read neighbours
      const int r = along_depth ? i / deep : i % tile, d = along_depth ? i % deep : i / tile;
      out[d * padded + r] = r < rows_left && k + d < p.depth ? from.at(p.group, p.first, row + r, k + d) : 0.f;
    }
  }

  template <class Block> MOESKIP_HD void operator()(const Block& block) const {
    const place p = find(block.block());
    if (p.group < 0) return;
    float *left = block.shared(), *right = left + deep * padded;
    const int across = tile / each, r0 = block.thread() / across, c0 = block.thread() % across;
    float sum[each][each] = {};
    for (index_t k = 0; k < p.depth; k += deep) {
      load(left, a, p, p.row, p.rows - p.row, k, block.thread());
      load(right, b, p, p.col, cols - p.col, k, block.thread());
      block.sync(0);
      for (int d = 0; d < deep; ++d)
        for (int i = 0; i < each; ++i)
          for (int j = 0; j < each; ++j)
            sum[i][j] += left[d * padded + r0 + across * i] * right[d * padded + c0 + across * j];
      block.sync(1);
    }
    for (int i = 0; i < each; ++i)
      for (int j = 0; j < each; ++j) {
        const index_t row = p.row + r0 + across * i, col = p.col + c0 + across * j;
        if (row >= p.rows || col >= cols) continue;
        const index_t at = p.group * c_group_step + (by == assigned::rows ? p.first + row : row) * cols + col;
        c[at] = base ? base[at] + sum[i][j] : sum[i][j];
      }
  }
};

}  // namespace phase

namespace detail {

/// row_tiles: of all groups, or more.
template <class Call, class W> void multiply_tiles(const phase::product<W>& p, index_t row_tiles) {
  using P = phase::product<W>;
  Call::launch({row_tiles * ceiling(p.cols, P::tile), P::threads, P::shared}, p);
}
template <class Call, class W> void multiply(const phase::product<W>& p, index_t rows) {
  multiply_tiles<Call>(p, ceiling(rows, phase::product<W>::tile));
}

}  // namespace detail

}  // namespace moeskip
