// The report's page on training: the loss of every exit as tokens pass.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "moeskip/eval/report/charts.hpp"
#include "moeskip/eval/report/data.hpp"
#include "moeskip/eval/report/page.hpp"
#include "moeskip/eval/report/style.hpp"
#include "moeskip/eval/report/token_strip.hpp"

namespace moeskip::report {

/// At most `most` points, each the mean of those around it: curves of single batches are mostly noise.
inline std::vector<std::pair<double, double>> smoothed(const std::vector<std::pair<double, double>>& raw,
                                                       std::size_t most) {
  const std::size_t groups = std::min(most, raw.size());
  std::vector<std::pair<double, double>> out;
  for (std::size_t g = 0; g < groups; ++g) {
    const std::size_t first = g * raw.size() / groups, last = (g + 1) * raw.size() / groups;
    double x = 0, y = 0;
    for (std::size_t i = first; i < last; ++i) x += raw[i].first, y += raw[i].second;
    out.push_back({x / double(last - first), y / double(last - first)});
  }
  return out;
}

inline std::string training_section(const report_data& d) {
  if (d.training.training.empty()) return {};
  std::vector<series> all;
  std::vector<int> exits;
  std::vector<double> values;
  extent xs{0, 0}, ys;
  for (const auto& [exit_layer, curve] : d.training.training) {
    exits.push_back(exit_layer);
    series s{.colour = depth_colour(exit_layer, d.layers), .points = {}};
    for (const auto& [x, y] : smoothed(curve, 60)) s.points.push_back({x, y, {}, {}}), xs.add(x), values.push_back(y);
    all.push_back(s);
  }
  for (const auto& [exit_layer, curve] : d.training.validation) {
    series s{.colour = depth_colour(exit_layer, d.layers), .points = {}, .dots = true, .line = false};
    for (const auto& [x, y] : curve) {
      xs.add(x), values.push_back(y);
      s.points.push_back({x, y, text("validation after layer ", exit_layer, ": ", fixed(y, 3), " bits per byte"), {}});
    }
    all.push_back(s);
  }
  // The first steps would flatten the rest: the picture is cut above the highest of the later nine tenths.
  std::sort(values.begin(), values.end());
  ys.add(values.front()), ys.add(values[values.size() * 95 / 100]);
  const extent cut = ys.padded();
  for (series& s : all) std::erase_if(s.points, [&](const point& p) { return p.y > cut.high; });
  const chart c{.width = 1040,
                .height = 340,
                .what = "training curves",
                .x_label = "tokens trained on",
                .y_label = "bits per byte"};
  return section("Training", "Mean over neighbouring steps, by exit; dots are the validation text.",
                 figure("Loss of every exit", depth_legend(exits, d.layers, "exit after layer"),
                        line_chart(c, all, xs, cut), true));
}

}  // namespace moeskip::report
