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

/// Each point the mean of those around it, a twelfth of the curve: curves of single batches are mostly noise.
inline std::vector<std::pair<double, double>> smoothed(const std::vector<std::pair<double, double>>& raw) {
  std::vector<std::pair<double, double>> out;
  for (std::size_t i = 0; i < raw.size(); ++i) {
    const std::size_t half = std::min({raw.size() / 24, i, raw.size() - 1 - i});
    double y = 0;
    for (std::size_t j = i - half; j <= i + half; ++j) y += raw[j].second;
    out.push_back({raw[i].first, y / double(2 * half + 1)});
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
    for (const auto& [x, y] : smoothed(curve)) s.points.push_back({x, y, {}, {}}), xs.add(x), values.push_back(y);
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
