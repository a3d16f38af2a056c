// Where a token's time and bytes go: one bar a decoder, divided by stage.
#pragma once

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "moeskip/concepts/observer.hpp"
#include "moeskip/eval/report/axes.hpp"
#include "moeskip/eval/report/data.hpp"
#include "moeskip/eval/report/page.hpp"

namespace moeskip::report {

/// Of a stage; the last one is of what is in none.
inline constexpr std::array<std::string_view, stage_names.size() + 1> stage_colours{
    "#3e70d6", "#dd9414", "#16969a", "#68a234", "#b85c9e", "#c8501e", "#8854ce", "#8a929d"};

/// A piece of a bar.
struct share {
  std::string name{}, colour{}, said{};
  double value = 0;
};

/// Bars that lie below a title, each with its sum behind it.
inline std::string lying_bars(std::string_view what, const std::vector<std::pair<std::string, std::vector<share>>>& all,
                              int digits) {
  constexpr double width = 500, left = 112, right = 58, top = 26, height = 22, pitch = 32;
  double most = 0;
  std::vector<double> sums;
  for (const auto& [name, shares] : all) {
    sums.push_back(0);
    for (const share& s : shares) sums.back() += s.value;
    most = std::max(most, sums.back());
  }
  svg out(width, top + pitch * double(all.size()), what);
  out.write(left, 12, what, "class=\"m\"");
  for (std::size_t i = 0; i < all.size(); ++i) {
    const double y = top + pitch * double(i), scale = most > 0 ? (width - left - right) / most : 0;
    out.write(left - 10, y + height / 2 + 4, all[i].first, "text-anchor=\"end\"");
    double x = left;
    for (const share& s : all[i].second) {
      // A hair of the card between neighbours.
      if (const double w = s.value * scale; w > 0.3)
        out.rect(x, y, std::max(0.3, w - 1), height, text("fill=\"", s.colour, "\""), s.said);
      x += s.value * scale;
    }
    out.write(x + 6, y + height / 2 + 4, fixed(sums[i], digits), "class=\"v\"");
  }
  return out.done();
}

/// The colours of the stages that somebody was in, and of the rest.
inline std::string stage_legend(const report_data& d) {
  std::string out = "<div class=\"legend\">";
  const auto add = [&](std::string_view name, std::string_view colour) {
    out += text("<span><i style=\"--c:", colour, "\"></i>", escape(name), "</span>");
  };
  for (std::size_t i = 0; i < stage_names.size(); ++i)
    if (std::any_of(d.speeds.begin(), d.speeds.end(), [&](const auto& s) { return s.in(stage_names[i]).bytes > 0; }))
      add(stage_names[i], stage_colours[i]);
  add("no stage: sampling, decisions, drafts from elsewhere", stage_colours.back());
  return out + "</div>";
}

/// Two pictures side by side; nothing where nobody counted.
inline std::string stage_figure(const report_data& d) {
  std::vector<std::pair<std::string, std::vector<share>>> times, bytes;
  for (const decoder_speed& s : d.speeds) {
    if (s.stages.empty() || s.stats.tokens == 0) continue;
    times.push_back({s.name, {}}), bytes.push_back({s.name, {}});
    double rest = s.stats.seconds / s.stats.tokens;
    for (std::size_t i = 0; i < s.stages.size(); ++i) {
      const stage_cost& c = s.stages[i];
      const std::string said = text(c.name, ": ", fixed(c.seconds * 1e6, 1), " µs, ", fixed(c.bytes / 1e6, 3), " MB, ",
                                    fixed(c.flop / 1e6, 3), " MFLOP a token");
      times.back().second.push_back({c.name, std::string(stage_colours[i]), said, c.seconds * 1e6});
      bytes.back().second.push_back({c.name, std::string(stage_colours[i]), said, c.bytes / 1e6});
      rest -= c.seconds;
    }
    times.back().second.push_back({"other", std::string(stage_colours.back()),
                                   text("in no stage: ", fixed(rest * 1e6, 1), " µs a token"),
                                   std::max(0.0, rest * 1e6)});
  }
  if (times.empty()) return {};
  return figure(
      "Where a token's time and bytes go",
      "By stage; drafts are in the stages that they run. Bytes: weights, each once a call, and keys and values "
      "of the past. Point at a piece for both.",
      text(stage_legend(d), "<div class=\"multiples\">", lying_bars("µs for a token", times, 0),
           lying_bars("MB read for a token", bytes, 2), "</div>"),
      true);
}

}  // namespace moeskip::report
