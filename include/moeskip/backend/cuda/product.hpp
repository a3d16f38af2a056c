// The tiled matrix product of prefill and training, for one matrix or for one of each expert:
//   c_g(r, c) = base_g(r, c) + Σ_k a_g(r, k) b_g(c, k)             a group g: an expert, or all there is
// An operand says how far apart its neighbours lie, so transposed ones are no case of their own. With experts, either
// the rows of c or the depth are the group's assignments, which may stand for gathered rows. Here it is made in f32:
// 64 × 64 outputs a block of 256 threads, 16 products deep at a time through shared memory. In bf16: tensor_product.hpp.
#pragma once

#include <bit>

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
  /// Where a row begins.
  MOESKIP_HD const W* row(int group, index_t first, index_t row) const {
    if (by == assigned::rows) row = gather ? gather[first + row] : first + row;
    return data + group * group_step + row * row_step;
  }
  MOESKIP_HD float at(int group, index_t first, index_t row, index_t depth) const {
    if (by == assigned::depth) depth = gather ? gather[first + depth] : first + depth;
    return to<float>(this->row(group, first, row)[depth * depth_step]);
  }
};

/// What is multiplied, and where it goes.
template <class W> struct product_call {
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

  /// A tile of c, in its group's numbers.
  struct place {
    int group, first, row, col, rows, depth;
  };
  /// The tile of a block; group -1: there is none. Each warp looks for it, 32 groups at a time.
  template <class Block> MOESKIP_HD place find(const Block& block, int tile) const {
    const index_t col_tiles = (cols + tile - 1) / tile;
    const int col = int(block.block() % col_tiles) * tile;
    int row_tile = int(block.block() / col_tiles);
    if (!first) return {row_tile * tile < rows ? 0 : -1, 0, row_tile * tile, col, int(rows), int(depth)};
    for (int from = 0; from < groups; from += 32) {
      const int mine = from + block.lane(), count = mine < groups ? first[mine + 1] - first[mine] : 0;
      const int have = by == assigned::rows ? count : mine < groups ? int(rows) : 0, tiles = (have + tile - 1) / tile;
      const int end = lanes_up_to(block, tiles);
      if (const std::uint32_t behind = block.warp_which(row_tile < end)) {
        const int lane = std::countr_zero(behind), g = from + lane;
        const int own = row_tile - int(block.warp_at(float(end - tiles), lane)), assignments = first[g + 1] - first[g];
        return {g,
                first[g],
                own * tile,
                col,
                by == assigned::rows ? assignments : int(rows),
                by == assigned::depth ? assignments : int(depth)};
      }
      row_tile -= int(block.warp_at(float(end), 31));
    }
    return {-1, 0, 0, 0, 0, 0};
  }
  /// c(row, col) of the group = base + sum, where there is such a number.
  MOESKIP_HD void put(const place& p, int row, int col, float sum) const {
    if (row >= p.rows || col >= cols) return;
    const index_t at = p.group * c_group_step + index_t(by == assigned::rows ? p.first + row : row) * cols + col;
    c[at] = base ? base[at] + sum : sum;
  }
};

template <class W> struct product {
  static constexpr const char* name = "product";
  static constexpr int barriers = 2;
  static constexpr int tile = 64, deep = 16, each = 4;  // a thread makes each × each outputs
  static constexpr int threads = (tile / each) * (tile / each), padded = tile + 1, shared = 2 * deep * padded;
  using place = typename product_call<W>::place;

  product_call<W> made;

  template <class X> MOESKIP_HD static void load(float* out, const operand<X>& from, const place& p, int row,
                                                 int rows_left, int k, int thread) {
    for (int i = thread; i < tile * deep; i += threads) {
      const bool along_depth = from.depth_step == 1;  // neighbouring threads read neighbours
      const int r = along_depth ? i / deep : i % tile, d = along_depth ? i % deep : i / tile;
      out[d * padded + r] = r < rows_left && k + d < p.depth ? from.at(p.group, p.first, row + r, k + d) : 0.f;
    }
  }

  template <class Block> MOESKIP_HD void operator()(const Block& block) const {
    const place p = made.find(block, tile);
    if (p.group < 0) return;
    float *left = block.shared(), *right = left + deep * padded;
    const int across = tile / each, r0 = block.thread() / across, c0 = block.thread() % across;
    float sum[each][each] = {};
    for (int k = 0; k < p.depth; k += deep) {
      load(left, made.a, p, p.row, p.rows - p.row, k, block.thread());
      load(right, made.b, p, p.col, int(made.cols) - p.col, k, block.thread());
      block.sync(0);
      for (int d = 0; d < deep; ++d)
        for (int i = 0; i < each; ++i)
          for (int j = 0; j < each; ++j)
            sum[i][j] += left[d * padded + r0 + across * i] * right[d * padded + c0 + across * j];
      block.sync(1);
    }
    for (int i = 0; i < each; ++i)
      for (int j = 0; j < each; ++j) made.put(p, p.row + r0 + across * i, p.col + c0 + across * j, sum[i][j]);
  }
};

}  // namespace phase

}  // namespace moeskip
