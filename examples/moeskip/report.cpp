// moeskip report: everything that can be said about a model and a text, on one HTML page.
#include <algorithm>

#include "../page/page.hpp"
#include "measure.hpp"
#include "moeskip/base/parallel.hpp"
#include "moeskip/eval/report/fill.hpp"
#include "moeskip/eval/report/training_log.hpp"
#include "moeskip/formats/tokenizer/byte.hpp"

namespace tool {

namespace {

struct options {
  model_options model;
  text_options text;
  threshold_option threshold;
  std::string out, log, json;
  std::string prompt;
  int prompts = 6, tokens = 0;
};

/// The same prompts through one decoder.
struct contestant {
  std::string name, note;
  decoder_choice how;
  std::vector<ms::generated> out{};
  ms::decode_stats total{};
};

/// The decoders over all prompts, interleaved so that a busy machine disturbs all alike. The first prompt runs twice: before
/// that decoders know nothing of the machine.
void compete(any_model& m, std::vector<contestant>& all, const texts& prompts, int tokens) {
  const ms::generation options{.max_new_tokens = tokens};
  const auto ignore = [](const ms::emitted&) {};
  for (contestant& c : all) m.generate(prompts.front(), options, c.how, ignore);
  for (const std::vector<int>& prompt : prompts)
    for (contestant& c : all) {
      c.out.push_back(m.generate(prompt, options, c.how, ignore));
      c.total += c.out.back().stats;
    }
}

ms::report::decoder_speed speed(const contestant& c, const contestant& plain) {
  ms::report::decoder_speed s{.name = c.name, .stats = c.total};
  std::vector<double> ratios;
  for (std::size_t i = 0; i < c.out.size(); ++i)
    ratios.push_back(c.out[i].stats.tokens_per_second() / std::max(1e-9, plain.out[i].stats.tokens_per_second()));
  std::sort(ratios.begin(), ratios.end());
  s.relative = ratios[ratios.size() / 2], s.lowest = ratios.front(), s.highest = ratios.back();
  double exits = 0, same = 0;
  for (std::size_t i = 0; i < c.out.size(); ++i) {
    for (const ms::emitted& e : c.out[i].tokens) exits += e.exit_layer;
    same += c.out[i].ids() == plain.out[i].ids();
  }
  s.mean_exit = exits / std::max(1, c.total.tokens), s.same = same / double(c.out.size());
  return s;
}

bool is_space(int byte) { return byte == ' ' || byte == '\n'; }
bool is_prose(int byte) { return byte == ' ' || (byte >= 'a' && byte <= 'z'); }

/// Whole words, evenly spread over the text; first the piece that is most like prose, since one is shown.
texts prompts_of(std::span<const int> tokens, const options& o, int length) {
  texts out;
  const std::size_t size = std::min(std::size_t(length), tokens.size());
  for (int i = 0; int(out.size()) < o.prompts; ++i) {
    std::size_t at = (tokens.size() - size) * std::size_t(2 * i + 1) / std::size_t(2 * o.prompts), end = at + size;
    while (at > 0 && !is_space(tokens[at - 1])) --at;
    while (end > at + size / 2 && !is_space(tokens[end - 1])) --end;
    at = std::max(at, end - std::min(end, size));
    out.emplace_back(tokens.begin() + std::ptrdiff_t(at), tokens.begin() + std::ptrdiff_t(end));
  }
  const auto prose = [](const std::vector<int>& t) { return std::count_if(t.begin(), t.end(), is_prose); };
  std::iter_swap(out.begin(), std::max_element(out.begin(), out.end(),
                                               [&](const auto& a, const auto& b) { return prose(a) < prose(b); }));
  if (!o.prompt.empty()) out.front() = ms::tokenizer::byte::encode(o.prompt);
  return out;
}

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
  const model_facts& f = m.facts();
  const int context = f.sizes.context, length = std::min(96, std::max(1, context / 4));
  MOESKIP_CHECK(ms::config_error, int(o.prompt.size()) < context, "--prompt: expected fewer bytes than the context of ",
                context, ", got ", o.prompt.size());
  const int room = context + 1 - std::max(length, int(o.prompt.size())), count = o.tokens ? o.tokens : room;
  MOESKIP_CHECK(ms::config_error, count <= room, "--tokens: expected at most ", room,
                " beside prompts in a context of ", context, ", got ", count);
  const texts prompts = prompts_of(tokens, o, length);
  std::vector<contestant> all{{"plain decoding", "All layers for every token.", {decoder_choice::plain}}};
  if (f.leaves_early()) {
    all.push_back(
        {"early exit", ms::report::note_on_early_exit(d.threshold), {decoder_choice::early_exit, d.threshold}});
    all.push_back({"self-speculation", std::string(ms::report::note_on_speculation), {decoder_choice::speculative}});
  }
  watch_experts(d, m, prompts.front());
  compete(m, all, prompts, count);
  for (const contestant& c : all) {
    d.speeds.push_back(speed(c, all.front()));
    if (c.how.what != decoder_choice::plain || all.size() == 1)
      d.texts.push_back(ms::report::decoded_bytes(c.name, c.note, prompts.front(), c.out.front().tokens,
                                                  c.out.front().stats.drafted > 0));
  }
  d.machine = ms::text(prompts.size(), " prompts, ", count, " bytes each, ", ms::thread_count(),
                       " threads, weights in ", f.weights);
}

void run(const options& o) {
  const std::vector<int> tokens = o.text.read();
  ms::report::training_curves training;
  if (!o.log.empty()) training = blaming("--log", [&] { return ms::report::read_training_log(o.log); });
  blaming("--out", [&] { ms::atomic_file attempt(o.out); });  // before minutes of work
  if (!o.json.empty()) blaming("--json", [&] { ms::atomic_file attempt(o.json); });
  const auto m = o.model.open();
  ms::report::report_data d = measure(*m, tokens, o.text.window_options(m->facts()), o.text.path, o.threshold);
  d.training = std::move(training);
  if (o.prompts > 0) generation(d, *m, tokens, o);
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
  app.add_option("--prompt", o->prompt, "The text whose continuation is shown (a piece of --text)")->type_name("TEXT");
  app.add_option("--prompts", o->prompts, "Prompts that decoders are timed on; 0 leaves generation out (6)")
      ->check(within(0, 10000))
      ->type_name("N");
  app.add_option("--tokens", o->tokens, "Bytes to generate for each (what the context has room for)")
      ->check(within(1, 1 << 24))
      ->type_name("N");
  app.footer(wrapped(
      "The page shows how every exit predicts the text and whether its confidence can be trusted, the load and company "
      "of "
      "every expert, texts coloured by the depth of each token, how far drafts get, and speeds on this machine."));
  return [o] { run(*o); };
}

}  // namespace tool
