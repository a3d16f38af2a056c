// moeskip eval: how good a model is at every depth, whether its confidence can be trusted, and what its experts do.
#include "measure.hpp"
#include "moeskip/eval/choice_file.hpp"
#include "moeskip/eval/drops.hpp"
#include "moeskip/eval/expert_parallel.hpp"
#include "moeskip/eval/perplexity.hpp"
#include "moeskip/eval/saturation.hpp"
#include "moeskip/formats/tokenizer/byte.hpp"

namespace tool {

namespace {

struct options {
  model_options model;
  text_options text;
  threshold_option threshold;
  std::string choices, against;
  double capacity = 0;
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
      {"exit after", "bits/byte", "perplexity", "right", "as full depth", "leave here", "ECE"}};
  for (std::size_t e = 0; e < d.exits.size(); ++e) {
    const ms::exit_judged& x = d.exits[e];
    rows.push_back({ms::text("layer ", x.exit_layer), fixed(x.bits, 4), fixed(ms::perplexity(x.bits), 3),
                    percent(x.correct), percent(x.agreement), percent(double(d.histogram[e]) / double(d.tokens_read)),
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
  std::vector<std::vector<std::string>> rows{{"layer", "MaxVio", "CV", "entropy", "dead", "gates", "overload on 4",
                                              "id decides", "guessed by id", "blindly", "foretold"}};
  for (std::size_t i = 0; i < d.routing.size(); ++i) {
    const ms::layer_routing& l = d.routing[i];
    const auto& [even, odd] = d.experts[i].ids;
    rows.push_back({ms::text(l.layer + 1), fixed(l.max_violation(), 2), fixed(l.variation(), 2), fixed(l.entropy(), 3),
                    ms::text(l.dead()), fixed(l.confidence(), 2),
                    l.experts >= 4 ? fixed(ms::overload(std::span<const long long>(l.choices), 4), 2) : "–",
                    percent(even.information(), 0), percent(odd.predicted(even), 0),
                    percent(odd.predicted_blindly(even), 0),
                    d.experts[i].foretold.all ? percent(d.experts[i].foretold.share(), 0) : "–"});
  }
  print(table(rows));
}

/// Questions, and how each exit answers them.
nlohmann::json answer(any_model& m, const std::string& path) {
  const auto questions = blaming("--choices", [&] {
    return ms::read_choices(path, std::size_t(m.facts().sizes.context) + 1, ms::tokenizer::byte::encode);
  });
  nlohmann::json out{{"questions", questions.size()}, {"chance", ms::chance(questions)}};
  for (const ms::choices_judged& j : ms::judge_choices(m.read_depth(ms::choice_texts(questions)), questions))
    out["exits"].push_back({{"exit_layer", j.exit_layer},
                            {"accuracy", j.correct},
                            {"accuracy_by_length", j.correct_by_length},
                            {"agreement", j.agreement}});
  return out;
}

void print_answers(const nlohmann::json& a) {
  print(ms::text("\nQuestions: ", a["questions"].get<std::size_t>(), ", guessing answers ",
                 percent(a["chance"].get<double>()), "\n"));
  std::vector<std::vector<std::string>> rows{{"exit after", "right", "right by length", "as full depth"}};
  for (const auto& e : a["exits"])
    rows.push_back({ms::text("layer ", e["exit_layer"].get<int>()), percent(e["accuracy"].get<double>()),
                    percent(e["accuracy_by_length"].get<double>()), percent(e["agreement"].get<double>())});
  print(table(rows));
}

/// What a capacity would drop, each window having its own.
nlohmann::json drops(const ms::report::report_data& d, int length, double factor) {
  ms::arena memory;
  ms::drop_observer watch(memory, factor, length, std::min(8, length));
  const std::vector<int> slot(std::size_t(length), 0);
  std::vector<int> position(static_cast<std::size_t>(length));
  for (int n = 0; n < length; ++n) position[std::size_t(n)] = n;
  for (std::size_t i = 0; i < d.experts.size(); ++i) {
    const ms::layer_routing& l = d.routing[i];
    std::vector<int> choices = d.experts[i].choices;
    const ms::index_t window = ms::index_t(length) * l.per_token;
    for (ms::index_t at = 0; at + window <= ms::index_t(choices.size()); at += window) {
      const ms::routing<float> r{{nullptr, length, l.experts}, {choices.data() + at, length, l.per_token}, {}, {}};
      watch.routed(l.layer, r, {{slot.data(), length}, {position.data(), length}, {}});
    }
  }
  const ms::drop_counts all = watch.all();
  nlohmann::json out{{"capacity_factor", factor}, {"ratio", all.ratio()}};
  for (std::size_t b = 0; b < all.assigned.size(); ++b) out["by_position"].push_back(all.ratio(b));
  return out;
}

/// The same text read by another checkpoint of the run: how many of this one's choices it shares, by layer.
nlohmann::json shared_with(const options& o, const ms::report::report_data& d, std::span<const int> tokens) {
  const auto other = blaming("--against", [&] { return tool::open(o.against, storage::as_stored); });
  const model_facts& f = other->facts();
  ms::arena memory;
  ms::expert_observer watch(memory, f.sizes.vocab, true);
  other->evaluate(tokens, o.text.window_options(f), watch);
  const std::vector<ms::expert_counts> theirs = watch.counts();
  MOESKIP_CHECK(ms::config_error, theirs.size() == d.experts.size(), "--against: expected ", d.experts.size(),
                " MoE layers, as --model has, got ", theirs.size());
  nlohmann::json out = nlohmann::json::array();
  for (std::size_t i = 0; i < theirs.size(); ++i)
    out.push_back({{"layer", d.routing[i].layer}, {"saturation", blaming("--against", [&] {
                                                     return ms::saturation(theirs[i].choices, d.experts[i].choices,
                                                                           d.routing[i].per_token);
                                                   })}});
  return out;
}

void print_shares(const char* title, const nlohmann::json& list, const char* member) {
  std::string line = ms::text("\n", title, ":");
  for (const auto& one : list) line += " " + percent((member ? one[member] : one).get<double>());
  print(line + "\n");
}

void run(const options& o) {
  o.json.expect_writable();
  const std::vector<int> tokens = o.text.read();
  const auto m = o.model.open();
  const ms::window_options windows = o.text.window_options(m->facts());
  const bool keeps = o.capacity > 0 || !o.against.empty();
  const ms::report::report_data d = measure(*m, tokens, windows, o.text.path, o.threshold, keeps);
  nlohmann::json out = to_json(d);
  if (!o.choices.empty()) out["choices"] = answer(*m, o.choices);
  if (o.capacity > 0) out["drops"] = drops(d, windows.length, o.capacity);
  if (!o.against.empty()) out["saturation"] = shared_with(o, d, tokens);
  if (o.json.write(out)) return;
  print(ms::text(d.title, ": ", d.subtitle, "\n\n"));
  print_depth(d);
  print_experts(d);
  if (!o.choices.empty()) print_answers(out["choices"]);
  if (o.capacity > 0)
    print_shares("Dropped over capacity, from the beginning of windows to their ends", out["drops"]["by_position"],
                 nullptr);
  if (!o.against.empty()) print_shares("Choices shared with --against, by layer", out["saturation"], "saturation");
}

}  // namespace

action declare_eval(CLI::App& app) {
  const auto o = std::make_shared<options>();
  o->model.declare(app), o->text.declare(app), o->threshold.declare(app);
  app.add_option(
         "--choices", o->choices,
         "Questions, one JSON object a line: {\"context\": text, \"choices\": [text, …], \"answer\": 0}; answered at "
         "every exit by the likelihood of each choice")
      ->type_name("FILE");
  app.add_option("--against", o->against,
                 "An earlier checkpoint of the same run: how many choices of experts both share")
      ->type_name("FILE");
  app.add_option("--capacity", o->capacity,
                 "Ask which choices would be dropped if an expert took no more than F times its fair share of a window")
      ->check(within(1e-3, 1e3))
      ->type_name("F");
  o->json.declare(app);
  app.footer(wrapped(
      "right: the most likely next byte is the text's. as full depth: it is the one that all layers would say. "
      "ECE: mean distance between an exit's confidence and how often it is right.\n"
      "MaxVio: load of the busiest expert over a fair one, less 1. CV: deviation of loads over their mean. "
      "entropy: 1 is perfect balance. dead: experts with under a hundredth of a fair load. "
      "overload: by how much 4 devices with a quarter of the experts each wait for the busiest. "
      "gates: the router's probability of the experts that it chose. "
      "id decides: share of the choice's entropy that the byte explains. "
      "guessed: choices named right by the counts of another half of the text. "
      "foretold: choices that the router would have made of what entered the layer before, on which reading experts "
      "ahead from a file rests."));
  return [o] { run(*o); };
}

}  // namespace tool
