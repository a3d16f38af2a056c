// The tiled product on tensor cores: both factors are rounded to bf16, sums are f32.
//   128 × 128 outputs a block of 8 warps, each 64 × 32 of them as 4 × 4 products of 16 × 8, 32 products deep at a time
// While the first half of a step is multiplied, the next left tile is on its way through registers, where activations
// are rounded, to the other half of shared memory; then the right one: one barrier a step.
#pragma once

#include "moeskip/backend/cuda/fragments.hpp"
#include "moeskip/backend/cuda/product.hpp"

namespace moeskip {

namespace phase {

template <class W> struct tensor_product {
  static constexpr const char* name = "tensor_product";
  static constexpr int barriers = 2;
  static constexpr int tile = 128, deep = 32;           // a step is two products of 16 deep
  static constexpr int warp_rows = 64, warp_cols = 32;  // a warp's outputs
  static constexpr int threads = 32 * (tile / warp_rows) * (tile / warp_cols), blocks_at_once = 2;
  static constexpr int stride = row_words(deep), half = 2 * tile * stride;  // words; half: of a pair of tiles
  static constexpr int shared = 2 * half;
  static constexpr int packs = deep / pack, packs_each = tile * packs / threads;  // of a row; of a thread
  using place = typename product_call<W>::place;

  product_call<W> made;

  /// What a thread brings of one tile, on its way.
  struct brought {
    packed_words of[packs_each];
  };
  /// The i-th pack of a thread: its row in the tile, and its place in the depth. Neighbouring threads take neighbours in
  /// memory: along the depth, or along the rows.
  MOESKIP_HD static int row_of(int i, int thread, bool along_depth) {
    const int at = thread + threads * i;
    return along_depth ? at / packs : at % tile;
  }
  MOESKIP_HD static int depth_of(int i, int thread, bool along_depth) {
    const int at = thread + threads * i;
    return pack * (along_depth ? at % packs : at / tile);
  }

  template <class X>
  MOESKIP_HD static brought fetch(const operand<X>& from, const place& p, int row, int rows, int k, int thread) {
    const bool along_depth = from.depth_step == 1;
    brought out;
    for (int i = 0; i < packs_each; ++i) {
      const int r = row + row_of(i, thread, along_depth), d = k + depth_of(i, thread, along_depth);
      float value[pack] = {};
      if (r < rows) {
        if (along_depth && from.by != assigned::depth) load_pack(value, from.row(p.group, p.first, r), d, p.depth);
        else
          for (int j = 0; j < pack; ++j)
            if (d + j < p.depth) value[j] = from.at(p.group, p.first, r, d + j);
      }
      out.of[i] = pack_words(value);
    }
    return out;
  }
  MOESKIP_HD static void store(std::uint32_t* to, const brought& from, int thread, bool along_depth) {
    for (int i = 0; i < packs_each; ++i)
      *reinterpret_cast<packed_words*>(to + row_of(i, thread, along_depth) * stride +
                                       depth_of(i, thread, along_depth) / 2) = from.of[i];
  }

  template <class Block> MOESKIP_HD void operator()(const Block& block) const {
    const place p = made.find(block, tile);
    if (p.group < 0) return;
    auto* const tiles = reinterpret_cast<std::uint32_t*>(block.shared());
    const bool a_along = made.a.depth_step == 1, b_along = made.b.depth_step == 1;
    const int thread = block.thread(), across = tile / warp_cols;
    const int warp_row = block.warp() / across * warp_rows, warp_col = block.warp() % across * warp_cols;
    constexpr int tall = warp_rows / 16, wide = warp_cols / 8;
    float sum[tall][wide][4] = {};

    const auto fetch_left = [&](int k) { return fetch(made.a, p, p.row, p.rows, k, thread); };
    const auto fetch_right = [&](int k) { return fetch(made.b, p, p.col, int(made.cols), k, thread); };
    const auto store_left = [&](int to, const brought& t) { store(tiles + to * half, t, thread, a_along); };
    const auto store_right = [&](int to, const brought& t) {
      store(tiles + to * half + tile * stride, t, thread, b_along);
    };
    const bool has_rows = warp_row < p.rows - p.row;
    const auto multiply = [&](int from, int step) {
      if (!has_rows) return;
      const std::uint32_t* const at = tiles + from * half + 8 * step;
      std::uint32_t a[tall][4], b[2];
      for (int i = 0; i < tall; ++i) load_left(a[i], at + (warp_row + 16 * i) * stride, stride, block.lane());
      for (int j = 0; j < wide; ++j) {
        load_right(b, at + (tile + warp_col + 8 * j) * stride, stride, block.lane());
        for (int i = 0; i < tall; ++i) block.multiply_add(sum[i][j], a[i], b);
      }
    };

    store_left(0, fetch_left(0)), store_right(0, fetch_right(0));
    block.sync(0);
    int now = 0;  // the half that is being multiplied
    for (int k = deep; k < p.depth; k += deep, now ^= 1) {
      const brought left = fetch_left(k);
      multiply(now, 0);
      store_left(now ^ 1, left);
      const brought right = fetch_right(k);
      multiply(now, 1);
      store_right(now ^ 1, right);
      block.sync(1);
    }
    multiply(now, 0), multiply(now, 1);
    for (int i = 0; i < tall; ++i)
      for (int j = 0; j < wide; ++j)
        for (int v = 0; v < 4; ++v)
          made.put(p, p.row + warp_row + 16 * i + sum_row(v, block.lane()),
                   p.col + warp_col + 8 * j + sum_col(v, block.lane()), sum[i][j][v]);
  }
};

}  // namespace phase

namespace detail {

/// row_tiles(tile): tiles of that many rows in all groups, or more.
template <class Call, class W, class Tiles>
void multiply_tiles(const phase::product_call<W>& made, const Tiles& row_tiles) {
  using P = std::conditional_t<Call::on_tensor_cores, phase::tensor_product<W>, phase::product<W>>;
  Call::launch({row_tiles(P::tile) * ceiling(made.cols, P::tile), P::threads, P::shared}, P{made});
}

}  // namespace detail

}  // namespace moeskip
