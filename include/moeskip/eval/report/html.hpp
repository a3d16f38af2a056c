// The report: one HTML file that needs nothing else, no network and no script; pictures are inline SVG.
#pragma once

#include <string>

#include "moeskip/eval/report/data.hpp"
#include "moeskip/eval/report/depth_section.hpp"
#include "moeskip/eval/report/expert_section.hpp"
#include "moeskip/eval/report/style.hpp"
#include "moeskip/eval/report/text_section.hpp"
#include "moeskip/eval/report/training_section.hpp"
#include "moeskip/version.hpp"

namespace moeskip::report {

inline std::string tile(std::string_view value, std::string_view unit, std::string_view what) {
  return text("<div class=\"tile\"><b>", escape(value), unit.empty() ? "" : " <small>", escape(unit),
              unit.empty() ? "" : "</small>", "</b><span>", escape(what), "</span></div>");
}

inline std::string tiles(const report_data& d) {
  std::string out = "<div class=\"tiles\">";
  out += tile(fixed(d.bits, 3), "bits/byte", "at full depth");
  out +=
      tile(short_number(d.parameters), "", text("weights, ", short_number(d.active_parameters), " active for a token"));
  if (!d.histogram.empty())
    out += tile(fixed(d.at_threshold.mean_exit, 1), text("of ", d.layers, " layers"),
                text("at confidence ", fixed(d.threshold, 2), ", agreeing on ",
                     fixed(100 * d.at_threshold.agreement, 1), " %"));
  if (!d.routing.empty()) {
    int dead = 0, all = 0;
    for (const layer_routing& l : d.routing) dead += l.dead(), all += l.experts;
    out += tile(text(dead), text("of ", all), "experts dead");
  }
  for (const decoder_speed& s : d.speeds)
    if (s.stats.drafted)
      out += tile(fixed(s.relative, 2) + "×", "",
                  text("speed of ", s.name, ", ", fixed(100 * s.stats.acceptance_rate(), 0), " % accepted"));
  return out + "</div>";
}

/// The whole page.
inline std::string html(const report_data& d) {
  std::string facts;
  for (const auto& [name, value] : d.facts) facts += text("<li><b>", escape(name), "</b>", escape(value), "</li>");
  return text(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
      "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>",
      escape(d.title), " · moeskip report</title>\n<style>", style_sheet, "</style></head><body><main>\n",
      "<header><p class=\"kicker\">moeskip report</p><h1>", escape(d.title), "</h1><p>", escape(d.subtitle),
      "</p><ul class=\"facts\">", facts, "</ul>", tiles(d), "</header>\n", text_section(d), depth_section(d),
      expert_section(d), training_section(d), "<footer><p>Written by moeskip ", MOESKIP_VERSION_MAJOR, ".",
      MOESKIP_VERSION_MINOR, ".", MOESKIP_VERSION_PATCH,
      ". Sources of the measures: MaxVio, arXiv:2408.15664; CV, arXiv:1701.06538; co-activation, arXiv:2409.02060; "
      "specialisation by token id, arXiv:2402.01739; paths between layers, arXiv:2401.08383; calibration error, "
      "arXiv:1706.04599; exit by confidence, arXiv:2207.07061; bytes of a call, arXiv:2505.19645; roof, "
      "doi:10.1145/1498765.1498785. Point at a shape to read its numbers.</p></footer>\n"
      "</main></body></html>\n");
}

}  // namespace moeskip::report
