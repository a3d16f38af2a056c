// Bars, lines and heat maps.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "moeskip/eval/report/axes.hpp"

namespace moeskip::report {

struct bar {
  std::string label, value_label;
  double value = 0;
  std::string colour{};  // empty: the accent
  std::string said{};    // when pointed at
};

/// Upright bars from `floor`, which should be 0 unless differences would vanish.
inline std::string bar_chart(const chart& c, const std::vector<bar>& bars, double floor = 0, double ceiling = 0) {
  extent e{floor, std::max(ceiling, floor)};
  for (const bar& b : bars) e.add(b.value);
  if (!(e.high > e.low)) e.high = e.low + 1;
  if (ceiling <= floor) e.high += 0.08 * (e.high - e.low);
  svg out(c.width, c.height, c.what);
  c.draw_y(out, e);
  const double pitch = c.inner_width() / double(std::max<std::size_t>(bars.size(), 1)),
               wide = std::min(54.0, pitch * 0.68);
  for (std::size_t i = 0; i < bars.size(); ++i) {
    const bar& b = bars[i];
    const double middle = c.left + pitch * (double(i) + 0.5), top = c.y(std::max(b.value, floor), e);
    const std::string fill = b.colour.empty() ? "class=\"acc\"" : text("fill=\"", b.colour, "\"");
    out.rect(middle - wide / 2, top, wide, c.top + c.inner_height() - top, fill + " rx=\"3\"", b.said);
    out.write(middle, top - 5, b.value_label, "text-anchor=\"middle\" class=\"v\"");
    out.write(middle, c.top + c.inner_height() + 17, b.label, "text-anchor=\"middle\" class=\"m\"");
  }
  return out.done();
}

struct point {
  double x = 0, y = 0;
  std::string said{}, label{};  // when pointed at; written beside it
};
struct series {
  std::string colour{};  // empty: the accent
  std::vector<point> points{};
  bool dots = false, line = true;
  std::string attributes{};
};

/// Lines over two axes. `ideal`: the diagonal is drawn.
inline std::string line_chart(const chart& c, const std::vector<series>& all, extent xs, extent ys, bool ideal = false,
                              const std::vector<double>& x_ticks = {}) {
  svg out(c.width, c.height, c.what);
  c.draw_y(out, ys);
  c.draw_x(out, xs, x_ticks.empty() ? round_numbers(xs, 6) : x_ticks);
  if (ideal) out.line(c.x(xs.low, xs), c.y(ys.low, ys), c.x(xs.high, xs), c.y(ys.high, ys), "class=\"ideal\"");
  for (const series& s : all) {
    std::string d;
    for (const point& p : s.points)
      if (std::isfinite(p.y)) d += text(d.empty() ? "M" : "L", at(c.x(p.x, xs)), " ", at(c.y(p.y, ys)));
    const std::string stroke =
        s.colour.empty() ? "class=\"accl\" " : text("fill=\"none\" stroke=\"", s.colour, "\" stroke-width=\"2\" ");
    if (s.line && !d.empty()) out.path(d, stroke + "stroke-linejoin=\"round\" " + s.attributes);
    const std::string fill = s.colour.empty() ? "class=\"acc\"" : text("fill=\"", s.colour, "\"");
    for (const point& p : s.points) {
      if (s.dots) out.circle(c.x(p.x, xs), c.y(p.y, ys), 3.4, fill, p.said);
      if (!p.label.empty()) out.write(c.x(p.x, xs), c.y(p.y, ys) - 9, p.label, "text-anchor=\"middle\"");
    }
  }
  return out.done();
}

/// A cell of a heat map: how strong, of which kind (over, under, acc), and what it says.
struct cell {
  double strength = 0;  // from 0 to 1
  std::string_view kind = "acc";
  std::string said{}, mark{};
};

struct heat_map {
  int rows = 0, cols = 0;
  double cell_width = 20, cell_height = 20, gap = 2;
  std::string what{}, row_name{}, col_name{};
  std::function<std::string(int)> row_label{}, col_label{};
  std::function<cell(int, int)> of{};

  std::string draw() const {
    const double left = row_label ? 44 : 0, top = col_label ? 34 : 16;
    svg out(left + cols * cell_width + 2, top + rows * cell_height + 2, what);
    if (!col_name.empty()) out.write(left, 11, col_name, "class=\"m\"");
    if (!row_name.empty()) out.write(0, row_label ? top - 7 : top + 10, row_name, "class=\"m\"");
    for (int c = 0; c < cols && col_label; ++c)
      out.write(left + (c + 0.5) * cell_width, top - 7, col_label(c), "text-anchor=\"middle\" class=\"m\"");
    for (int r = 0; r < rows; ++r) {
      const double y = top + r * cell_height;
      if (row_label) out.write(left - 8, y + cell_height / 2 + 4, row_label(r), "text-anchor=\"end\" class=\"m\"");
      for (int c = 0; c < cols; ++c) {
        const double x = left + c * cell_width;
        const cell one = of(r, c);
        const double w = cell_width - gap, h = cell_height - gap;
        out.rect(x, y, w, h, "class=\"cell\" rx=\"2\"", one.strength > 0.004 ? "" : one.said);
        if (one.strength > 0.004)
          out.rect(
              x, y, w, h,
              text("class=\"", one.kind, "\" fill-opacity=\"", fixed(std::min(1.0, one.strength), 2), "\" rx=\"2\""),
              one.said);
        if (!one.mark.empty()) out.write(x + w / 2, y + h / 2 + 4, one.mark, "text-anchor=\"middle\" class=\"mark\"");
      }
    }
    return out.done();
  }
};

}  // namespace moeskip::report
