// Matrices of one shape: the planes of a cube, or each where it was put, such as experts in a file of others.
#pragma once

#include <concepts>
#include <utility>
#include <vector>

#include "moeskip/tensor/view.hpp"

namespace moeskip {

/// (planes, rows, cols). Non-owning, as views are, but for the table of matrices that stand apart, which is the host's:
/// a device is given the cube.
template <class T> class planes {
 public:
  planes() = default;
  template <std::convertible_to<cube<T>> Cube> planes(const Cube& together) : together_(together) {}
  /// Plane i (rows, cols) begins at each[i]. They are a cube where each stands directly behind the one before.
  planes(std::vector<T*> each, index_t rows, index_t cols)
      : together_(each.empty() ? nullptr : each[0], each.size(), rows, cols), each_(std::move(each)) {
    bool apart = false;  // nullptr, where a model is only measured, is no place
    for (std::size_t i = 1; i < each_.size() && each_[0]; ++i) apart = apart || each_[i] != each_[i - 1] + rows * cols;
    if (!apart) each_.clear();
  }

  index_t extent(int axis) const { return together_.extent(axis); }
  index_t rows() const { return together_.rows(); }
  index_t cols() const { return together_.cols(); }
  mat<T> plane(index_t i) const {
    return each_.empty() ? together_.plane(i) : mat<T>(each_[std::size_t(i)], rows(), cols());
  }
  /// All of them as one cube. Throws config_error where they stand apart.
  const cube<T>& together() const {
    MOESKIP_CHECK(config_error, each_.empty(), "expected ", extent(0), " matrices behind one another, got some that ",
                  "stand apart, as load_mapped() leaves them: load() copies them together");
    return together_;
  }

 private:
  cube<T> together_;
  std::vector<T*> each_;  // (planes), or empty: they are a cube
};

/// Throws shape_error that names op and argument unless p has exactly these extents.
template <class T> void expect_shape(std::string_view op, std::string_view argument, const planes<T>& p, index_t count,
                                     index_t rows, index_t cols) {
  expect_shape(op, argument, cube<T>(nullptr, p.extent(0), p.extent(1), p.extent(2)), count, rows, cols);
}

}  // namespace moeskip
