// Views: non-owning, row-major, contiguous, trivially copyable. A shape stands at every declaration:
//   vec<T> (n)   mat<T> (rows, cols)   cube<T> (planes, rows, cols)
#pragma once

#include <array>
#include <string>
#include <type_traits>

#include "moeskip/base/check.hpp"
#include "moeskip/base/config.hpp"

namespace moeskip {

template <class T, int Rank> class view {
  static_assert(Rank >= 1 && Rank <= 3);

 public:
  using value_type = std::remove_const_t<T>;

  constexpr view() = default;
  template <class... Extents>
    requires(sizeof...(Extents) == Rank)
  MOESKIP_HD constexpr view(T* data, Extents... extents) : data_(data), extents_{index_t(extents)...} {}

  /// A view of mutable elements converts to a view of const ones.
  template <class U>
    requires(std::is_same_v<const U, T> && !std::is_same_v<U, T>)
  MOESKIP_HD constexpr view(const view<U, Rank>& other) : data_(other.data()) {
    for (int axis = 0; axis < Rank; ++axis) extents_[axis] = other.extent(axis);
  }

  MOESKIP_HD constexpr T* data() const { return data_; }
  MOESKIP_HD constexpr index_t extent(int axis) const { return extents_[axis]; }
  MOESKIP_HD constexpr index_t size() const {
    index_t n = 1;
    for (int axis = 0; axis < Rank; ++axis) n *= extents_[axis];
    return n;
  }
  MOESKIP_HD constexpr bool empty() const { return size() == 0; }
  MOESKIP_HD constexpr T* begin() const { return data_; }
  MOESKIP_HD constexpr T* end() const { return data_ + size(); }

  // Matrices and cubes speak of rows and columns: their last two axes.
  MOESKIP_HD constexpr index_t rows() const requires(Rank >= 2) { return extents_[Rank - 2]; }
  MOESKIP_HD constexpr index_t cols() const requires(Rank >= 2) { return extents_[Rank - 1]; }

  MOESKIP_HD constexpr T& operator[](index_t i) const requires(Rank == 1) { return data_[i]; }
  MOESKIP_HD constexpr T& operator()(index_t row, index_t col) const requires(Rank == 2) {
    return data_[row * extents_[1] + col];
  }
  /// row(i): the i-th row of a matrix as a vector.
  MOESKIP_HD constexpr view<T, 1> row(index_t i) const requires(Rank == 2) {
    return {data_ + i * extents_[1], extents_[1]};
  }
  /// rows(first, count): a run of rows of a matrix.
  MOESKIP_HD constexpr view<T, 2> rows(index_t first, index_t count) const requires(Rank == 2) {
    return {data_ + first * extents_[1], count, extents_[1]};
  }
  /// plane(i): the i-th matrix of a cube.
  MOESKIP_HD constexpr view<T, 2> plane(index_t i) const requires(Rank == 3) {
    return {data_ + i * extents_[1] * extents_[2], extents_[1], extents_[2]};
  }

 private:
  T* data_ = nullptr;
  index_t extents_[Rank] = {};
};

template <class T> using vec = view<T, 1>;
template <class T> using mat = view<T, 2>;
template <class T> using cube = view<T, 3>;

/// "(3, 128)", for messages.
template <class T, int Rank> std::string shape_of(const view<T, Rank>& v) {
  std::string out = "(";
  for (int axis = 0; axis < Rank; ++axis) out += text(axis ? ", " : "", v.extent(axis));
  return out + ")";
}

/// Throws shape_error that names op and argument unless v has exactly these extents.
template <class T, int Rank, class... Extents>
void expect_shape(std::string_view op, std::string_view argument, const view<T, Rank>& v, Extents... extents) {
  static_assert(sizeof...(Extents) == Rank);
  const std::array<index_t, Rank> want{index_t(extents)...};
  for (int axis = 0; axis < Rank; ++axis)
    if (v.extent(axis) != want[axis]) [[unlikely]]
      fail<shape_error>(op, ": ", argument, " must be ", shape_of(view<T, Rank>(v.data(), extents...)), ", got ",
                        shape_of(v));
}

}  // namespace moeskip
