// moeskip report: everything that can be said about a model and a text, on one HTML page.
#include "../page/page.hpp"
#include "measure.hpp"
#include "moeskip/base/parallel.hpp"
#include "moeskip/eval/report/fill.hpp"
#include "moeskip/eval/report/training_log.hpp"
#include "speeds.hpp"

namespace tool {

namespace {

struct options {
  model_options model;
  text_options text;
  threshold_option threshold;
  prompt_options prompts;
  std::string out, log, json;
};

/// Shows experts at work on the beginning of a prompt rather than on that of the text, which often is a title.
void watch_experts(ms::report::report_data& d, any_model& m, const std::vector<int>& prompt) {
  if (d.experts.empty() || prompt.size() < 2) return;
  ms::arena memory;
  ms::expert_observer watch(memory, m.facts().sizes.vocab);
  m.evaluate(prompt, {.length = int(prompt.size()) - 1, .sequences = 1}, watch);
  const std::vector<ms::expert_counts> seen = watch.counts();
  for (std::size_t l = 0; l < d.experts.size(); ++l)
    d.experts[l].first_tokens = seen[l].first_tokens, d.experts[l].first_choices = seen[l].first_choices;
}

void generation(ms::report::report_data& d, any_model& m, std::span<const int> tokens, const options& o) {
  race r = prepare(m, tokens, o.prompts, d.threshold);
  watch_experts(d, m, r.prompts.front());
  run(r, m);
  d.speeds = r.speeds();
  d.read = r.limits.read, d.peak = r.limits.peak;
  for (const contestant& c : r.all)
    if (c.how.what != decoder_choice::plain || r.all.size() == 1)
      d.texts.push_back(ms::report::decoded_bytes(c.name, c.note, r.prompts.front(), c.out.front().tokens,
                                                  c.out.front().stats.drafted > 0));
  d.machine = ms::text("prompts: ", r.prompts.size(), ", of ", r.tokens,
                       " new bytes each; threads: ", ms::thread_count(), ", weights in ", m.facts().weights);
}

void write(const options& o) {
  const std::vector<int> tokens = o.text.read();
  ms::report::training_curves training;
  if (!o.log.empty()) training = blaming("--log", [&] { return ms::report::read_training_log(o.log); });
  blaming("--out", [&] { ms::atomic_file attempt(o.out); });  // before minutes of work
  if (!o.json.empty()) blaming("--json", [&] { ms::atomic_file attempt(o.json); });
  const auto m = o.model.open();
  ms::report::report_data d = measure(*m, tokens, o.text.window_options(m->facts()), o.text.path, o.threshold);
  d.training = std::move(training);
  if (o.prompts.prompts > 0) generation(d, *m, tokens, o);
  const std::string content = page::html(d);
  write_file("--out", o.out, content);
  if (!o.json.empty())
    write_file("--json", o.json, to_json(d).dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  print(ms::text(o.out, ": ", ms::grouped(ms::index_t(content.size())), " bytes\n"));
}

}  // namespace

action declare_report(CLI::App& app) {
  const auto o = std::make_shared<options>();
  o->model.declare(app), o->text.declare(app), o->threshold.declare(app);
  app.add_option("--out", o->out, "The page; one file that needs nothing else")->required()->type_name("FILE");
  app.add_option("--json", o->json, "Write the numbers into this file, too")->type_name("FILE");
  app.add_option("--log", o->log, "The metrics of the training run (.jsonl), for its curves")->type_name("FILE");
  o->prompts.declare(app, 0);
  app.footer(wrapped(
      "The page shows how every exit predicts the text and whether its confidence can be trusted, the load and company "
      "of "
      "every expert, texts coloured by the depth of each token, how far drafts get, and speeds on this machine."));
  return [o] { write(*o); };
}

}  // namespace tool
