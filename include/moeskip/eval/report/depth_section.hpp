// The report's pages on depth: what each exit is worth, where tokens leave, whether confidence can be trusted.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "moeskip/eval/report/charts.hpp"
#include "moeskip/eval/report/data.hpp"
#include "moeskip/eval/report/page.hpp"
#include "moeskip/eval/report/style.hpp"

namespace moeskip::report {

inline std::string bits_by_exit(const report_data& d) {
  std::vector<bar> bars;
  for (const exit_judged& e : d.exits)
    bars.push_back({text(e.exit_layer), fixed(e.bits, 2), e.bits, depth_colour(e.exit_layer, d.layers),
                    text("after layer ", e.exit_layer, ": ", fixed(e.bits, 4), " bits per byte")});
  return figure(
      "Bits per byte, by exit", "How well each depth predicts the text. Lower is better.",
      bar_chart({.what = "bits per byte by exit", .x_label = "exit layer", .y_label = "bits per byte"}, bars));
}

inline std::string agreement_by_exit(const report_data& d) {
  std::vector<bar> bars;
  for (const exit_judged& e : d.exits)
    bars.push_back({text(e.exit_layer), fixed(100 * e.agreement, 0) + " %", 100 * e.agreement,
                    depth_colour(e.exit_layer, d.layers),
                    text("after layer ", e.exit_layer, ": agrees with the full depth on ", fixed(100 * e.agreement, 1),
                         " % of tokens, right about ", fixed(100 * e.correct, 1), " %")});
  return figure(
      "Agreement with the full depth",
      "Share of tokens whose most likely next token is already the one that all layers would say. It bounds what "
      "a draft from that depth can win.",
      bar_chart({.what = "agreement by exit", .x_label = "exit layer", .y_label = "% of tokens"}, bars, 0, 112));
}

inline std::string where_tokens_leave(const report_data& d) {
  double all = 0;
  for (const long long n : d.histogram) all += double(n);
  std::vector<bar> bars;
  for (std::size_t e = 0; e < d.histogram.size(); ++e) {
    const double share = 100 * double(d.histogram[e]) / std::max(1.0, all);
    bars.push_back({text(d.exits[e].exit_layer), fixed(share, 0) + " %", share,
                    depth_colour(d.exits[e].exit_layer, d.layers),
                    text(d.histogram[e], " tokens leave after layer ", d.exits[e].exit_layer)});
  }
  return figure("Where tokens leave",
                text("At a confidence of ", fixed(d.threshold, 2), " (", escape(d.threshold_from),
                     "): ", fixed(d.at_threshold.mean_exit, 2), " of ", d.layers, " layers on average, ",
                     fixed(100 * d.at_threshold.saved(d.layers), 0), " % saved, ", fixed(d.at_threshold.bits, 3),
                     " bits per byte."),
                bar_chart({.what = "exit histogram", .x_label = "exit layer", .y_label = "% of tokens"}, bars));
}

/// What is lost and won on the way from running few layers to running all; `of_threshold` and `of_exit` say the same
/// thing of tokens that leave by confidence and of those that all leave at one exit.
inline std::string trade_off(const report_data& d, std::string_view title, std::string_view caption, const char* label,
                             double threshold_judged::*of_threshold, double exit_judged::*of_exit, double scale) {
  series by_token{.points = {}, .dots = true};
  series by_exit{.colour = "#8a929d", .points = {}, .dots = true, .attributes = "stroke-dasharray=\"2 4\""};
  extent xs, ys;
  for (const threshold_judged& t : d.trade_off) {
    xs.add(t.mean_exit), ys.add(scale * (t.*of_threshold));
    by_token.points.push_back({t.mean_exit,
                               scale * (t.*of_threshold),
                               text("confidence ", fixed(t.threshold, 2), ": ", fixed(t.mean_exit, 2), " layers, ",
                                    fixed(t.bits, 3), " bits per byte, agrees on ", fixed(100 * t.agreement, 1), " %"),
                               {}});
  }
  for (const exit_judged& e : d.exits) {
    xs.add(e.exit_layer), ys.add(scale * (e.*of_exit));
    by_exit.points.push_back({double(e.exit_layer),
                              scale * (e.*of_exit),
                              text("all leave after layer ", e.exit_layer, ": ", fixed(e.bits, 3),
                                   " bits per byte, agree on ", fixed(100 * e.agreement, 1), " %"),
                              {}});
  }
  return figure(title, caption,
                line_chart({.what = std::string(title), .x_label = "layers run, mean", .y_label = label},
                           {by_exit, by_token}, xs.padded(), ys.padded()));
}

inline std::string depth_against_surprise(const report_data& d) {
  series s{.points = {}, .dots = true};
  extent ys;
  for (std::size_t g = 0; g < d.by_surprise.size(); ++g) {
    const surprise_group& group = d.by_surprise[g];
    ys.add(group.mean_exit);
    s.points.push_back(
        {double(g + 1),
         group.mean_exit,
         text("tenth ", g + 1, ": ", fixed(group.bits, 3), " bits, ", fixed(group.mean_exit, 2), " layers"),
         {}});
  }
  std::vector<double> ticks;
  for (std::size_t g = 0; g < d.by_surprise.size(); ++g) ticks.push_back(double(g + 1));
  return figure(
      "Depth follows surprise",
      text("Tokens in tenths by how surprised the full model is, from ", fixed(d.by_surprise.front().bits, 3), " to ",
           fixed(d.by_surprise.back().bits, 1), " bits: the layers each tenth runs at the threshold."),
      line_chart({.what = "mean exit layer by tenth of surprise",
                  .x_label = "tenth of tokens, from expected to surprising",
                  .y_label = "mean exit layer"},
                 {s}, {0.5, double(d.by_surprise.size()) + 0.5}, ys.padded(0.15), false, ticks));
}

/// One exit: shares of tokens in each bin that agree with the full depth, the area of a dot their number, and that are
/// right.
inline std::string reliability_picture(const std::vector<confidence_bin>& bins, int exit_layer, int layers) {
  const chart c{.width = 190,
                .height = 178,
                .what = text("reliability of the exit after layer ", exit_layer),
                .left = 30,
                .right = 10,
                .top = 24,
                .bottom = 24};
  const extent unit{0, 1};
  svg out(c.width, c.height, c.what);
  out.write(0, 11, text("after layer ", exit_layer), "class=\"v\"");
  out.write(c.width - 10, 11, text("ECE ", fixed(calibration_error(bins), 3)), "text-anchor=\"end\" class=\"m\"");
  for (const double t : {0.0, 0.5, 1.0}) {
    out.line(c.left, c.y(t, unit), c.width - c.right, c.y(t, unit), "class=\"grid\"");
    out.write(c.left - 6, c.y(t, unit) + 4, fixed(t, t == 0.5 ? 1 : 0), "text-anchor=\"end\" class=\"m\"");
    out.write(c.x(t, unit), c.height - 8, fixed(t, t == 0.5 ? 1 : 0), "text-anchor=\"middle\" class=\"m\"");
  }
  out.line(c.x(0, unit), c.y(0, unit), c.x(1, unit), c.y(1, unit), "class=\"ideal\"");
  double most = 1;
  for (const confidence_bin& b : bins) most = std::max(most, double(b.tokens));
  const std::string colour = depth_colour(exit_layer, layers);
  const auto curve = [&](double confidence_bin::*share, std::string_view attributes) {
    std::string path;
    for (const confidence_bin& b : bins)
      if (b.tokens) path += text(path.empty() ? "M" : "L", at(c.x(b.confidence, unit)), " ", at(c.y(b.*share, unit)));
    if (!path.empty()) out.path(path, text("fill=\"none\" ", attributes));
  };
  curve(&confidence_bin::correct, text("stroke-width=\"1.5\" stroke=\"", colour, "\" stroke-opacity=\".55\""));
  curve(&confidence_bin::agreement, text("stroke-width=\"2\" stroke=\"", colour, "\""));
  for (const confidence_bin& b : bins)
    if (b.tokens)
      out.circle(c.x(b.confidence, unit), c.y(b.agreement, unit), 2 + 5 * std::sqrt(double(b.tokens) / most),
                 text("fill=\"", colour, "\" fill-opacity=\".85\""),
                 text(b.tokens, " tokens: confidence ", fixed(b.confidence, 2), ", agree with the full depth ",
                      fixed(b.agreement, 2), ", right ", fixed(b.correct, 2)));
  return out.done();
}

inline std::string confidence_pictures(const report_data& d) {
  std::string body = "<div class=\"multiples\">";
  for (std::size_t e = 0; e < d.reliability.size(); ++e)
    body += reliability_picture(d.reliability[e], d.exits[e].exit_layer, d.layers);
  return figure("Can confidence be trusted?",
                "Confidence of an exit (across) against how often it says what the full depth says (dots, the larger "
                "the more tokens) and "
                "what the text says (thin line). ECE: mean distance of the thin line from the diagonal, where "
                "confidence means what it says. "
                "How far the dots lie above is what early exit wins beyond that.",
                body + "</div>", true);
}

/// What leaving at the threshold saves and costs, in a sentence.
inline std::string price_of_leaving(const report_data& d) {
  const double bits = d.at_threshold.bits - d.exits.back().bits;
  return text(" Leaving at a confidence of ", fixed(d.threshold, 2), " saves ",
              fixed(100 * d.at_threshold.saved(d.layers), 0), " % of the layers. It costs ", fixed(bits, 3),
              " bits per byte, and for ", fixed(100 * (1 - d.at_threshold.agreement), 1),
              " % of tokens another next one than all layers would name.");
}

inline std::string depth_section(const report_data& d) {
  if (d.exits.empty()) return {};
  std::string figures = bits_by_exit(d) + agreement_by_exit(d);
  if (!d.histogram.empty()) figures += where_tokens_leave(d);
  if (!d.by_surprise.empty()) figures += depth_against_surprise(d);
  if (d.trade_off.size() > 1)
    figures +=
        trade_off(
            d, "Agreement for layers",
            "Line: each token leaves where its confidence reaches a threshold. Dotted: all leave at the same layer. "
            "What lies between is what choosing token by token brings to the text that is generated.",
            "% as full depth", &threshold_judged::agreement, &exit_judged::agreement, 100) +
        trade_off(
            d, "Bits for layers",
            "The same in bits per byte. Leaving early costs probability even where the most likely token stays the "
            "same, so the dotted line may be the better one here.",
            "bits per byte", &threshold_judged::bits, &exit_judged::bits, 1);
  if (!d.reliability.empty()) figures += confidence_pictures(d);
  return section(
      "Depth",
      text("Read from ", short_number(double(d.tokens_read)),
           " tokens of the text. Where tokens leave early, later ones here still see true keys and values of all "
           "layers.",
           d.histogram.empty() ? std::string() : price_of_leaving(d)),
      figures);
}

}  // namespace moeskip::report
