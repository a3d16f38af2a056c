// Panels: what the packed product (gemm.hpp) reads in order. A panel is `width` rows of A, or columns of B, as cells
// (steps, width), its last ones padding. A cell is what one row has for one step of the sum:
//   product in f32    a float
//   product in bf16   a pair of bf16 that follow each other in k, the first in the lower half: one 32-bit word
// Packing copies, transposes, gathers rows, widens stored bf16 for products in f32 and rounds f32 for those in bf16.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "moeskip/backend/cpu/simd.hpp"
#include "moeskip/base/check.hpp"

namespace moeskip::cpu_kernels {

/// A or B: stored row-major, its rows `stride` apart, element (r, c) at data[row(r) * stride + c]; row(r) =
/// rows[r] where there is a list (gather), else r. `transposed`: the factor is the transpose of what is
/// stored.
template <class T> struct factor {
  const T* data;
  index_t stride;
  bool transposed = false;
  const std::int32_t* rows = nullptr;

  const T* row(index_t r) const { return data + (rows ? index_t(rows[r]) : r) * stride; }
};

namespace detail {

/// Cells of a product whose factors are rounded to P, and what the micro-kernel does with them.
template <class Arch, class P> struct cell;

template <class Arch> struct cell<Arch, float> {
  using type = float;
  using vector = simd::lanes<Arch>;
  static constexpr index_t terms = 1;  // of the sum, in one cell
  static vector load(const float* p) { return simd::load<Arch>(p); }
  static simd::lanes<Arch> multiply_add(vector a, vector b, simd::lanes<Arch> sum) { return simd::fma(a, b, sum); }
};

template <class Arch> struct cell<Arch, bf16> {
  using type = std::uint32_t;
  using vector = simd::words<Arch>;
  static constexpr index_t terms = 2;
  static vector load(const std::uint32_t* p) { return vector::load_unaligned(p); }
  static simd::lanes<Arch> multiply_add(vector a, vector b, simd::lanes<Arch> sum) {
    return simd::dot<Arch>(a, b, sum);
  }
};

template <class Arch, class P> using cell_of = typename cell<Arch, P>::type;

constexpr index_t round_up(index_t x, index_t to) { return (x + to - 1) / to * to; }

// ---- cells of one float ----

/// Stored rows first … first+used-1, columns k … k+depth-1, as the columns of the panel (so this transposes,
/// four by four). Padding repeats the last row; its sums are never stored.
template <class Arch, class T> void pack_across(float* panel, index_t width, const factor<T>& f, index_t first,
                                                index_t used, index_t k, index_t depth) {
  using Q = simd::quad_arch<Arch>;
  constexpr index_t step = 16 / index_t(sizeof(T));  // elements in four words
  for (index_t start = 0; start < width; start += 4) {
    const index_t r = width < 4 ? 0 : std::min(start, width - 4);  // the last four may overlap the ones before
    const T* source[4];
    for (index_t i = 0; i < 4; ++i) source[i] = f.row(first + std::min(r + i, used - 1)) + k;
    float* to = panel + r;
    index_t j = 0;
    if (width >= 4) {
      for (; j + step <= depth; j += step, to += step * width) {
        if constexpr (sizeof(T) == 4) {
          auto a = simd::load<Q>(source[0] + j), b = simd::load<Q>(source[1] + j);
          auto c = simd::load<Q>(source[2] + j), d = simd::load<Q>(source[3] + j);
          simd::transpose(a, b, c, d);
          simd::store(to, a), simd::store(to + width, b);
          simd::store(to + 2 * width, c), simd::store(to + 3 * width, d);
        } else {
          const auto a = simd::load_words<Q>(source[0] + j), b = simd::load_words<Q>(source[1] + j);
          const auto c = simd::load_words<Q>(source[2] + j), d = simd::load_words<Q>(source[3] + j);
          auto a0 = simd::even(a), b0 = simd::even(b), c0 = simd::even(c), d0 = simd::even(d);
          auto a1 = simd::odd(a), b1 = simd::odd(b), c1 = simd::odd(c), d1 = simd::odd(d);
          simd::transpose(a0, b0, c0, d0);
          simd::transpose(a1, b1, c1, d1);
          simd::store(to, a0), simd::store(to + width, a1);
          simd::store(to + 2 * width, b0), simd::store(to + 3 * width, b1);
          simd::store(to + 4 * width, c0), simd::store(to + 5 * width, c1);
          simd::store(to + 6 * width, d0), simd::store(to + 7 * width, d1);
        }
      }
    }
    for (; j < depth; ++j, to += width)
      for (index_t i = 0; i < std::min<index_t>(4, width); ++i) to[i] = static_cast<float>(source[i][j]);
  }
}

/// Stored rows k … k+depth-1, columns first … first+used-1, as the steps of the panel. Padding is zero.
template <class Arch, class T> void pack_along(float* panel, index_t width, const factor<T>& f, index_t first,
                                               index_t used, index_t k, index_t depth) {
  using Q = simd::quad_arch<Arch>;
  constexpr index_t step = 16 / index_t(sizeof(T));
  for (index_t j = 0; j < depth; ++j, panel += width) {
    const T* source = f.row(k + j) + first;
    index_t i = 0;
    for (; i + step <= used; i += step) {
      if constexpr (sizeof(T) == 4) {
        simd::store(panel + i, simd::load<Q>(source + i));
      } else {
        const auto words = simd::load_words<Q>(source + i);
        auto low = simd::even(words), high = simd::odd(words);
        simd::interleave(low, high);
        simd::store(panel + i, low), simd::store(panel + i + 4, high);
      }
    }
    for (; i < used; ++i) panel[i] = static_cast<float>(source[i]);
    for (; i < width; ++i) panel[i] = 0.0f;
  }
}

// ---- cells of two bf16 ----

inline constexpr index_t deepest_panel = 512;  // elements of k

/// Elements j and j + 1 of x (n), as one cell; zero beyond the end.
template <class T> std::uint32_t pair_of(const T* x, index_t j, index_t n) {
  const auto bits = [&](index_t i) { return std::uint32_t(i < n ? bf16(static_cast<float>(x[i])).bits : 0); };
  return bits(j) | bits(j + 1) << 16;
}

/// As above; each stored row is rounded once, then four by four cells are transposed.
template <class Arch, class T> void pack_across(std::uint32_t* panel, index_t width, const factor<T>& f, index_t first,
                                                index_t used, index_t k, index_t depth) {
  using Q = simd::quad_arch<Arch>;
  alignas(alignment) bf16 rounded[4][deepest_panel];
  for (index_t start = 0; start < width; start += 4) {
    const index_t r = width < 4 ? 0 : std::min(start, width - 4);  // the last four may overlap the ones before
    const bf16* source[4];
    for (index_t i = 0; i < 4; ++i) {
      const T* row = f.row(first + std::min(r + i, used - 1)) + k;
      if constexpr (std::is_same_v<T, bf16>) source[i] = row;
      else simd::round<Arch>(rounded[i], row, depth), source[i] = rounded[i];
    }
    std::uint32_t* to = panel + r;
    index_t j = 0;
    for (; width >= 4 && j + 8 <= depth; j += 8, to += 4 * width) {
      auto a = simd::load_words<Q>(source[0] + j), b = simd::load_words<Q>(source[1] + j);
      auto c = simd::load_words<Q>(source[2] + j), d = simd::load_words<Q>(source[3] + j);
      simd::transpose(a, b, c, d);
      a.store_unaligned(to), b.store_unaligned(to + width);
      c.store_unaligned(to + 2 * width), d.store_unaligned(to + 3 * width);
    }
    for (; j < depth; j += 2, to += width)
      for (index_t i = 0; i < std::min<index_t>(4, width); ++i) to[i] = pair_of(source[i], j, depth);
  }
}

template <class Arch, class T> void pack_along(std::uint32_t* panel, index_t width, const factor<T>& f, index_t first,
                                               index_t used, index_t k, index_t depth) {
  constexpr index_t N = simd::width<Arch>;
  for (index_t j = 0; j < depth; j += 2, panel += width) {
    const bool last = j + 1 == depth;  // of an odd number: its pairs end in zero
    const T* low = f.row(k + j) + first;
    const T* high = last ? low : f.row(k + j + 1) + first;
    index_t i = 0;
    for (; !last && i + N <= used; i += N) simd::pairs<Arch>(low + i, high + i).store_unaligned(panel + i);
    if constexpr (std::is_same_v<T, float>)  // panels of A are narrower than a vector
      if (!last && i < used) simd::store_pairs_part<Arch>(panel + i, low + i, high + i, used - i), i = used;
    for (; i < used; ++i) {
      const T both[] = {low[i], high[i]};
      panel[i] = pair_of(both, 0, last ? 1 : 2);
    }
    for (; i < width; ++i) panel[i] = 0;
  }
}

}  // namespace detail

}  // namespace moeskip::cpu_kernels
