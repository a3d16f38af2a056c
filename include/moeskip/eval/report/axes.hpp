// The frame of a chart: from numbers to places, and round numbers along the axes.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "moeskip/eval/report/markup.hpp"

namespace moeskip::report {

/// From `low` to `high`, all finite, never empty.
struct extent {
  double low = std::numeric_limits<double>::infinity(), high = -std::numeric_limits<double>::infinity();

  void add(double x) {
    if (std::isfinite(x)) low = std::min(low, x), high = std::max(high, x);
  }
  /// With some air; one that starts at 0 stays there.
  extent padded(double share = 0.06) const {
    if (!(low <= high)) return {0, 1};
    const double air = high > low ? (high - low) * share : std::max(1e-9, std::abs(high) * share);
    return {low == 0 ? 0 : low - air, high + air};
  }
};

/// Multiples of 1, 2 or 5 times a power of ten inside the extent, about `wanted` of them.
inline std::vector<double> round_numbers(const extent& e, int wanted = 5) {
  const double raw = (e.high - e.low) / wanted;
  if (!(raw > 0) || !std::isfinite(raw)) return {e.low};
  const double power = std::pow(10, std::floor(std::log10(raw))), first = raw / power;
  const double step = power * (first < 1.5 ? 1 : first < 3.5 ? 2 : first < 7.5 ? 5 : 10);
  std::vector<double> out;
  for (double i = std::ceil(e.low / step - 1e-9); i * step <= e.high + step * 1e-9; ++i) out.push_back(i * step);
  return out;
}

/// As few digits as tell neighbours apart.
inline std::string tick_label(double value, const std::vector<double>& all) {
  const double step = all.size() > 1 ? all[1] - all[0] : std::abs(value);
  if (std::abs(value) >= 10000) return short_number(value);
  int digits = 0;
  while (digits < 6 && std::abs(step * std::pow(10, digits) - std::round(step * std::pow(10, digits))) > 1e-6) ++digits;
  return fixed(value, digits);
}

struct chart {
  double width = 480, height = 250;
  std::string what{}, x_label{}, y_label{};
  double left = 46, right = 14, top = 22, bottom = 40;

  double inner_width() const { return width - left - right; }
  double inner_height() const { return height - top - bottom; }
  double x(double value, const extent& e) const { return left + (value - e.low) / (e.high - e.low) * inner_width(); }
  double y(double value, const extent& e) const {
    return top + inner_height() - (value - e.low) / (e.high - e.low) * inner_height();
  }
  /// Grid and numbers of the vertical axis, the names of both.
  void draw_y(svg& to, const extent& e) const {
    const std::vector<double> ticks = round_numbers(e, 4);
    for (const double t : ticks) {
      to.line(left, y(t, e), width - right, y(t, e), "class=\"grid\"");
      to.write(left - 8, y(t, e) + 4, tick_label(t, ticks), "text-anchor=\"end\" class=\"m\"");
    }
    to.write(0, 10, y_label, "class=\"m\"");
    to.write(left + inner_width() / 2, height - 4, x_label, "text-anchor=\"middle\" class=\"m\"");
    to.line(left, top + inner_height(), width - right, top + inner_height(), "class=\"axis\"");
  }
  void draw_x(svg& to, const extent& e, const std::vector<double>& ticks) const {
    for (const double t : ticks)
      to.write(x(t, e), top + inner_height() + 17, tick_label(t, ticks), "text-anchor=\"middle\" class=\"m\"");
  }
};

}  // namespace moeskip::report
