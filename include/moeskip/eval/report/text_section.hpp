// The report's pages on generation: texts coloured by depth, how far drafts get, and speeds.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "moeskip/eval/report/charts.hpp"
#include "moeskip/eval/report/data.hpp"
#include "moeskip/eval/report/page.hpp"
#include "moeskip/eval/report/stage_section.hpp"
#include "moeskip/eval/report/token_strip.hpp"
#include "moeskip/eval/touched_experts.hpp"

namespace moeskip::report {

inline std::string strip(const decoded_text& t, const report_data& d) {
  std::vector<int> exits;
  for (const emitted& e : t.tokens)
    if (std::find(exits.begin(), exits.end(), e.exit_layer) == exits.end()) exits.push_back(e.exit_layer);
  std::sort(exits.begin(), exits.end());
  return text(
      "<div class=\"strip\"><h3>", escape(t.name), "</h3><figcaption>", escape(t.note), "</figcaption>",
      depth_legend(exits, d.layers, t.speculative ? "drafted after layer (the last: said by all)" : "left after layer"),
      token_strip(t, d.layers), "</div>\n");
}

/// " Drafting takes 40 % of the time and 25 % of the bytes of a round."
inline std::string cost_of_drafts(const decoder_speed& s) {
  const double seconds = s.drafting.seconds + s.verifying.seconds, bytes = s.drafting.bytes + s.verifying.bytes;
  if (!(seconds > 0) || !(bytes > 0)) return {};
  return text(" Drafting takes ", fixed(100 * s.drafting.seconds / seconds, 0), " % of the time and ",
              fixed(100 * s.drafting.bytes / bytes, 0), " % of the bytes of rounds.");
}

inline std::string acceptance_by_position(const decoder_speed& s) {
  std::vector<bar> bars;
  for (std::size_t i = 0; i < decode_stats::positions && s.stats.drafted_at[i]; ++i) {
    const double rate = 100.0 * s.stats.accepted_at[i] / s.stats.drafted_at[i];
    bars.push_back(
        {text(i + 1),
         fixed(rate, 0),
         rate,
         {},
         text(s.stats.accepted_at[i], " of ", s.stats.drafted_at[i], " tokens drafted in place ", i + 1, " stand")});
  }
  return figure("Acceptance by place in the draft",
                text("Of the tokens drafted in each place, how many stand. ", fixed(100 * s.stats.acceptance_rate(), 0),
                     " % over all, ", fixed(double(s.stats.tokens) / std::max(1, s.stats.rounds), 2),
                     " tokens per pass of the full model.", cost_of_drafts(s)),
                bar_chart({.width = 1040,
                           .height = 220,
                           .what = "acceptance by draft position",
                           .x_label = "place in the draft",
                           .y_label = "% accepted"},
                          bars, 0, 112),
                true);
}

/// "12.3 GB/s" of reads, "45 GFLOP/s" of products: what the roof is made of.
inline std::string limits_in_words(const report_data& d) {
  if (!(d.read > 0)) return {};
  return text(
      " Roof: the tokens a second that this machine allows, by what a decoder reads and computes for a token, drafts "
      "included: it read weights of this size at ",
      fixed(d.read / 1e9, 1), " GB/s and multiplied at ", fixed(d.peak / 1e9, 0),
      " GFLOP/s, measured beside. The rest is the price of small steps.");
}

inline std::string speed_table(const report_data& d) {
  std::vector<std::vector<std::string>> rows{
      {"decoder", "tokens/s", "speed", "layers", "experts", "accepted", "same text"}};
  if (d.read > 0) rows.front().insert(rows.front().end(), {"MB", "MFLOP", "roof", "reached"});
  for (const decoder_speed& s : d.speeds) {
    rows.push_back(
        {s.name, fixed(s.stats.tokens_per_second(), 0),
         &s == &d.speeds.front() ? std::string("1×")
                                 : text(fixed(s.relative, 2), "× (", fixed(s.lowest, 2), "–", fixed(s.highest, 2), ")"),
         fixed(double(s.stats.layer_steps) / std::max(1, s.stats.tokens), 1), fixed(experts_touched(s.stats), 1),
         s.stats.drafted ? fixed(100 * s.stats.acceptance_rate(), 0) + " %" : "–", fixed(100 * s.same, 0) + " %"});
    if (d.read > 0)
      rows.back().insert(rows.back().end(),
                         {fixed(s.bytes / 1e6, 2), fixed(s.flop / 1e6, 2), s.roof > 0 ? fixed(s.roof, 0) : "–",
                          s.roof > 0 ? fixed(100 * s.stats.tokens_per_second() / s.roof, 0) + " %" : "–"});
  }
  return figure("Speed",
                text("The same prompts, greedy, one after the other: ", escape(d.machine),
                     ". Speed: against plain decoding of the same prompt, median and extremes. Layers: run for each "
                     "token, drafts included. Experts: distinct ones of each call, for each token that stands. Same "
                     "text: prompts continued as plain decoding does.",
                     limits_in_words(d)),
                table(rows), true);
}

inline std::string text_section(const report_data& d) {
  std::string figures;
  if (!d.speeds.empty()) figures += speed_table(d) + stage_figure(d);
  for (const decoder_speed& s : d.speeds)
    if (s.stats.drafted) figures += acceptance_by_position(s);
  std::string strips;
  for (const decoded_text& t : d.texts) strips += strip(t, d);
  if (strips.empty() && figures.empty()) return {};
  return text(
      "<section><h2>Generation</h2>\n<p>One prompt, continued greedily. The prompt is grey; the colour under each "
      "token "
      "says how many layers it took.</p>\n",
      strips, "<div class=\"figures\">", figures, "</div></section>\n");
}

}  // namespace moeskip::report
