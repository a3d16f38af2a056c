// Tensor cores multiply matrices that lie scattered over a warp: every lane holds a fragment of the left one (16 × 16),
// of the right one (16 × 8) and of their sums (16 × 8). Lane 4 g + m has, as pairs of neighbours at column 2 m:
//   left    rows g, g + 8 of columns 0 … 7; the same rows of columns 8 … 15
//   right   as its transpose: row g of columns 0 … 7, then of columns 8 … 15
//   sums    row g, row g + 8
// which is PTX's mma.m16n8k16. Factors come from tiles in shared memory, rows of bf16, two a word. A row is 8 numbers
// longer than it need be, so that the rows that a warp touches together begin on different banks.
#pragma once

#include "moeskip/backend/cuda/block.hpp"

namespace moeskip::phase {

/// Two numbers in bf16; the first in the lower half.
MOESKIP_HD inline std::uint32_t bf16_pair(float first, float second) {
#if defined(__CUDA_ARCH__)
  std::uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
  return both;
#else
  return bf16(first).bits | std::uint32_t(bf16(second).bits) << 16;
#endif
}

/// Words of a row of `columns` numbers.
constexpr int row_words(int columns) { return (columns + pack) / 2; }

/// Eight numbers as words of a tile.
struct alignas(16) packed_words {
  std::uint32_t word[pack / 2];
};
MOESKIP_HD inline packed_words pack_words(const float (&value)[pack]) {
  packed_words out;
  for (int j = 0; j < pack / 2; ++j) out.word[j] = bf16_pair(value[2 * j], value[2 * j + 1]);
  return out;
}

/// This lane's fragment of the 16 × 16 numbers at `tile`, of rows of `stride` words.
MOESKIP_HD inline void load_left(std::uint32_t (&a)[4], const std::uint32_t* tile, int stride, int lane) {
  const std::uint32_t* at = tile + lane / 4 * stride + lane % 4;
  a[0] = at[0], a[1] = at[8 * stride], a[2] = at[4], a[3] = at[8 * stride + 4];
}
/// That of the right matrix whose transpose (8 × 16) is at `tile`.
MOESKIP_HD inline void load_right(std::uint32_t (&b)[2], const std::uint32_t* tile, int stride, int lane) {
  const std::uint32_t* at = tile + lane / 4 * stride + lane % 4;
  b[0] = at[0], b[1] = at[4];
}
/// That of the right matrix (16 × 8) at `tile` as it stands.
template <class Block>
MOESKIP_HD void load_right_rows(const Block& block, std::uint32_t (&b)[2], const std::uint32_t* tile, int stride) {
  block.load_transposed(b, tile + block.lane() % 16 * stride);
}

/// Where the v-th of a lane's four sums stands.
MOESKIP_HD constexpr int sum_row(int v, int lane) { return lane / 4 + v / 2 * 8; }
MOESKIP_HD constexpr int sum_col(int v, int lane) { return lane % 4 * 2 + v % 2; }

/// Sums (16 × 8) of two neighbours as a left matrix, rounded.
MOESKIP_HD inline void sums_as_left(std::uint32_t (&a)[4], const float (&first)[4], const float (&second)[4]) {
  a[0] = bf16_pair(first[0], first[1]), a[1] = bf16_pair(first[2], first[3]);
  a[2] = bf16_pair(second[0], second[1]), a[3] = bf16_pair(second[2], second[3]);
}

/// Over the four lanes that hold a row of sums.
template <class Block> MOESKIP_HD float row_sum(const Block& b, float v) {
  v += b.warp_xor(v, 1);
  return v + b.warp_xor(v, 2);
}
template <class Block> MOESKIP_HD float row_max(const Block& b, float v) {
  for (int m = 1; m <= 2; ++m) {
    const float other = b.warp_xor(v, m);
    v = other > v ? other : v;
  }
  return v;
}

}  // namespace moeskip::phase
