// moeskip eval: how good a model is at every depth, whether its confidence can be trusted, and what its experts do.
#include "measure.hpp"
#include "moeskip/eval/expert_parallel.hpp"

namespace tool {

namespace {

struct options {
  model_options model;
  text_options text;
  threshold_option threshold;
  json_options json;
};

std::string percent(double share, int digits = 1) { return fixed(100 * share, digits) + " %"; }

void print_depth(const ms::report::report_data& d) {
  if (d.histogram.empty()) {
    print(ms::text("  ", fixed(d.bits, 4), " bits per byte; the model has no exits below its full depth of ", d.layers,
                   "\n"));
    return;
  }
  std::vector<std::vector<std::string>> rows{
      {"exit after", "bits/byte", "right", "as full depth", "leave here", "ECE"}};
  for (std::size_t e = 0; e < d.exits.size(); ++e) {
    const ms::exit_judged& x = d.exits[e];
    rows.push_back({ms::text("layer ", x.exit_layer), fixed(x.bits, 4), percent(x.correct), percent(x.agreement),
                    percent(double(d.histogram[e]) / double(d.tokens_read)),
                    e < d.reliability.size() ? fixed(ms::calibration_error(d.reliability[e]), 3) : "–"});
  }
  print(table(rows));
  print(ms::text("\nLeaving at confidence ", d.threshold, " (", d.threshold_from, "): ",
                 fixed(d.at_threshold.mean_exit, 2), " of ", d.layers, " layers, ", fixed(d.at_threshold.bits, 4),
                 " bits per byte, as full depth on ", percent(d.at_threshold.agreement), "\n"));
  if (!d.by_surprise.empty())
    print(ms::text("Depth by surprise: ", fixed(d.by_surprise.front().mean_exit, 2),
                   " layers for the tenth of tokens expected most, ", fixed(d.by_surprise.back().mean_exit, 2),
                   " for that expected least\n"));
}

void print_experts(const ms::report::report_data& d) {
  if (d.routing.empty()) return;
  print("\nExperts\n");
  std::vector<std::vector<std::string>> rows{
      {"layer", "MaxVio", "CV", "entropy", "dead", "overload on 4", "id decides", "guessed by id", "blindly"}};
  for (std::size_t i = 0; i < d.routing.size(); ++i) {
    const ms::layer_routing& l = d.routing[i];
    const auto& [even, odd] = d.experts[i].ids;
    rows.push_back(
        {ms::text(l.layer + 1), fixed(l.max_violation(), 2), fixed(l.variation(), 2), fixed(l.entropy(), 3),
         ms::text(l.dead()), l.experts >= 4 ? fixed(ms::overload(std::span<const long long>(l.choices), 4), 2) : "–",
         percent(even.information(), 0), percent(odd.predicted(even), 0), percent(odd.predicted_blindly(even), 0)});
  }
  print(table(rows));
}

void run(const options& o) {
  o.json.expect_writable();
  const std::vector<int> tokens = o.text.read();
  const auto m = o.model.open();
  const ms::report::report_data d = measure(*m, tokens, o.text.window_options(m->facts()), o.text.path, o.threshold);
  if (o.json.write(to_json(d))) return;
  print(ms::text(d.title, ": ", d.subtitle, "\n\n"));
  print_depth(d);
  print_experts(d);
}

}  // namespace

action declare_eval(CLI::App& app) {
  const auto o = std::make_shared<options>();
  o->model.declare(app), o->text.declare(app), o->threshold.declare(app), o->json.declare(app);
  app.footer(wrapped(
      "right: the most likely next byte is the text's. as full depth: it is the one that all layers would say. ECE: "
      "mean distance "
      "between an exit's confidence and how often it is right.\n"
      "MaxVio: load of the busiest expert over a fair one, less 1. CV: deviation of loads over their mean. entropy: 1 "
      "is perfect "
      "balance. dead: experts with under a hundredth of a fair load. overload: by how much 4 devices with a quarter of "
      "the experts "
      "each wait for the busiest. id decides: share of the choice's entropy that the byte explains. guessed: choices "
      "named right "
      "by the counts of another half of the text."));
  return [o] { run(*o); };
}

}  // namespace tool
