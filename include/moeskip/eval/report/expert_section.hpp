// The report's pages on experts: who does the work, who works together, and what decides it.
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <vector>

#include "moeskip/eval/expert_parallel.hpp"
#include "moeskip/eval/report/charts.hpp"
#include "moeskip/eval/report/data.hpp"
#include "moeskip/eval/report/expert_words.hpp"
#include "moeskip/eval/report/page.hpp"

namespace moeskip::report {

/// How far a ratio is from 1: a factor of `full` either way has full strength.
inline cell ratio_cell(double ratio, double full, std::string said) {
  const double strength = ratio > 0 ? std::abs(std::log(ratio)) / std::log(full) : 1;
  return {std::min(1.0, strength), ratio >= 1 ? "over" : "under", std::move(said), {}};
}

inline std::string load_map(const report_data& d) {
  int experts = 0;
  for (const layer_routing& l : d.routing) experts = std::max(experts, l.experts);
  const double wide = std::clamp(980.0 / std::max(1, experts), 7.0, 140.0);
  const int every = experts <= 24 ? 1 : experts <= 64 ? 4 : 16;
  const heat_map map{
      .rows = int(d.routing.size()),
      .cols = experts,
      .cell_width = wide,
      .cell_height = 24,
      .what = "load of every expert in every layer",
      .row_name = "layer",
      .col_name = "expert",
      .row_label = [&](int r) { return text(d.routing[std::size_t(r)].layer + 1); },
      .col_label = [&](int c) { return c % every ? std::string() : text(c); },
      .of =
          [&](int r, int c) {
            const layer_routing& l = d.routing[std::size_t(r)];
            const double load = l.share(c) * l.experts;
            cell one = ratio_cell(load, 3,
                                  text("layer ", l.layer + 1, ", expert ", c, ": ", fixed(load, 2),
                                       " times its fair share, ", fixed(100 * l.share(c), 1), " % of choices"));
            if (load < 0.01) one.mark = "×";
            return one;
          },
  };
  return figure(
      "Load of every expert",
      "Share of a layer's choices, relative to a fair one. <span style=\"color:var(--over)\">Orange</span>: more "
      "than fair; <span style=\"color:var(--under)\">blue</span>: less; the colour is full at three times and at a "
      "third. ×: dead, under a hundredth.",
      map.draw(), true);
}

inline std::string layer_table(const report_data& d) {
  std::vector<std::vector<std::string>> rows{{"layer", "MaxVio", "CV", "entropy", "dead", "gates", "overload on 2",
                                              "on 4", "id decides", "guessed by id", "guessed blindly", "foretold"}};
  for (std::size_t i = 0; i < d.routing.size(); ++i) {
    const layer_routing& l = d.routing[i];
    const auto over = [&](int p) {
      return p <= l.experts ? fixed(overload(std::span<const long long>(l.choices), p), 2) : std::string("–");
    };
    std::vector<std::string> row{text(l.layer + 1),
                                 fixed(l.max_violation(), 2),
                                 fixed(l.variation(), 2),
                                 fixed(l.entropy(), 3),
                                 text(l.dead()),
                                 fixed(l.confidence(), 2),
                                 over(2),
                                 over(4)};
    if (i < d.experts.size()) {
      const auto& [even, odd] = d.experts[i].ids;
      row.push_back(fixed(100 * even.information(), 0) + " %");
      row.push_back(fixed(100 * odd.predicted(even), 0) + " %");
      row.push_back(fixed(100 * odd.predicted_blindly(even), 0) + " %");
      const choice_overlap& foretold = d.experts[i].foretold;
      row.push_back(foretold.all ? fixed(100 * foretold.share(), 0) + " %" : std::string("–"));
    } else {
      row.insert(row.end(), {"–", "–", "–", "–"});
    }
    rows.push_back(row);
  }
  return figure(
      "Balance and specialisation, layer by layer",
      "MaxVio: load of the busiest expert over a fair one, less 1. CV: deviation of loads over their mean. Entropy: 1 "
      "is perfect balance. Gates: the router's probability of the experts that it chose, K/E where it knows nothing. "
      "Overload: by how much p devices with E/p experts each wait for the busiest. Id decides: "
      "share of the choice's entropy that the token's id explains. Guessed: choices named right by the counts of "
      "another half of the text, by id and without a look at it. Foretold: choices that the router would have made of "
      "what entered the layer before.",
      table(rows), true);
}

/// A small map of a pair of layers, or of one layer with itself; `chance` is the lift of choices that know nothing of
/// each other.
inline std::string pair_map(const expert_pairs& p, const std::string& title, bool with_itself, double chance) {
  const double side = std::clamp(150.0 / std::max(1, std::max(p.rows(), p.cols())), 3.0, 14.0);
  const auto one = [&](int a, int b) -> cell {
    if (with_itself && a == b) return {};
    return ratio_cell(p.lift(a, b) / chance, 6,
                      text("of the tokens of expert ", a, ", ", fixed(100 * p.given(a, b), 1), " % visit expert ", b,
                           ": ", fixed(p.lift(a, b) / chance, 2), " times as many as by chance"));
  };
  return heat_map{.rows = p.rows(),
                  .cols = p.cols(),
                  .cell_width = side,
                  .cell_height = side,
                  .gap = side > 6 ? 1.0 : 0.5,
                  .what = title,
                  .col_name = title,
                  .of = one}
      .draw();
}

inline std::string pair_pictures(const report_data& d) {
  std::string within, between;
  for (std::size_t i = 0; i < d.experts.size(); ++i) {
    const expert_counts& c = d.experts[i];
    const double K = d.routing[i].per_token, E = d.routing[i].experts;
    if (K > 1) within += pair_map(c.within, text("layer ", c.layer + 1), true, (K - 1) / K * E / std::max(1.0, E - 1));
    if (c.before.tokens() && i > 0)
      between += pair_map(c.before, text("layer ", d.experts[i - 1].layer + 1, " → ", c.layer + 1), false, 1);
  }
  std::string out;
  if (!within.empty())
    out += figure("Experts that work together",
                  "Co-activation: how often tokens of one expert (down) visit another one (across) in the same layer, "
                  "against chance. "
                  "Orange: more often, blue: less; full at six times and at a sixth.",
                  "<div class=\"multiples\">" + within + "</div>", true);
  if (!between.empty())
    out += figure("From one layer to the next",
                  "How often tokens of an expert in one MoE layer (down) go on to each expert of the next (across), "
                  "against chance. "
                  "Orange cells are paths that many tokens share: experts worth placing side by side.",
                  "<div class=\"multiples\">" + between + "</div>", true);
  return out;
}

/// ": expert 3 of layer 2, experts 0, 7 of layer 5", as many as a sentence holds; "" where none is dead.
inline std::string who_is_dead(const report_data& d) {
  constexpr int most = 12;
  std::string out;
  int all = 0;
  for (const layer_routing& l : d.routing) {
    std::string here;
    const int before = all;
    for (int e = 0; e < l.experts; ++e)
      if (l.share(e) * l.experts < 0.01 && ++all <= most) here += text(here.empty() ? "" : ", ", e);
    if (!here.empty())
      out +=
          text(out.empty() ? ": " : ", ", all > before + 1 ? "experts " : "expert ", here, " of layer ", l.layer + 1);
  }
  return all > most ? text(out, " and ", all - most, " more") : out;
}

inline std::string expert_section(const report_data& d) {
  if (d.routing.empty()) return {};
  int dead = 0, all = 0;
  double worst = 0;
  for (const layer_routing& l : d.routing)
    dead += l.dead(), all += l.experts, worst = std::max(worst, l.max_violation());
  return section(
      "Experts",
      text(all, " experts in ", d.routing.size(), " MoE layers, ", d.routing.front().per_token, " chosen per token; ",
           dead == 0 ? std::string("none is") : text(dead, dead == 1 ? " is" : " are"), " dead", who_is_dead(d),
           ". The busiest has ", fixed(worst + 1, 2), " times its fair share."),
      load_map(d) + paths(d) + claims(d) + layer_table(d) + pair_pictures(d));
}

}  // namespace moeskip::report
