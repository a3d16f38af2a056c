// moeskip bench: what each decoder makes of a machine: tokens a second, against plain decoding and against the roof.
#include <algorithm>

#include "measure.hpp"
#include "moeskip/base/parallel.hpp"
#include "moeskip/eval/report/fill.hpp"
#include "moeskip/eval/touched_experts.hpp"
#include "moeskip/formats/text.hpp"
#include "moeskip/formats/tokenizer/byte.hpp"
#include "speeds.hpp"

namespace tool {

namespace {

ms::report::decoder_speed speed(const contestant& c, const contestant& plain, const race& r) {
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
  const double tokens = std::max(1, c.total.tokens);
  s.mean_exit = exits / tokens, s.same = same / double(c.out.size());
  ms::report::add_work(s, c.work, r.bytes_per_weight, r.limits);
  return s;
}

/// What a token costs where: for each decoder a line of times and one of bytes.
std::string table_of_stages(const std::vector<ms::report::decoder_speed>& all) {
  std::vector<std::vector<std::string>> rows{{""}};
  std::vector<std::string_view> stages;  // that anybody was in
  for (const std::string_view name : ms::stage_names)
    for (const auto& s : all)
      if (s.in(name).bytes > 0 && (stages.empty() || stages.back() != name)) stages.push_back(name);
  rows[0].insert(rows[0].end(), stages.begin(), stages.end());
  rows[0].insert(rows[0].end(), {"all", "draft", "verify"});
  for (const ms::report::decoder_speed& s : all)
    for (const bool times : {true, false}) {
      const auto cost = [&](const ms::report::stage_cost& c) {
        return times ? fixed(c.seconds * 1e6, 1) : fixed(c.bytes / 1e6, 3);
      };
      rows.push_back({s.name + (times ? ", µs" : ", MB")});
      for (const std::string_view name : stages) rows.back().push_back(cost(s.in(name)));
      rows.back().push_back(times ? fixed(1e6 / s.stats.tokens_per_second(), 1) : fixed(s.bytes / 1e6, 3));
      for (const ms::report::stage_cost& c : {s.drafting, s.verifying})
        rows.back().push_back(s.stats.drafted ? cost(c) : "–");
    }
  return table(rows);
}

bool is_space(int byte) { return byte == ' ' || byte == '\n'; }
bool is_prose(int byte) { return byte == ' ' || (byte >= 'a' && byte <= 'z'); }

/// Whole words, evenly spread over the text; first the piece that is most like prose, since one is shown.
texts prompts_of(std::span<const int> tokens, const prompt_options& o, int length) {
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

struct options {
  model_options model;
  std::string text;
  threshold_option threshold;
  prompt_options prompts;
  json_options json;
};

void bench(const options& o) {
  o.json.expect_writable();
  const std::vector<int> tokens = blaming("--text", [&] { return ms::tokenizer::byte::encode(ms::read_text(o.text)); });
  const auto m = o.model.open();
  race r = prepare(*m, tokens, o.prompts, o.threshold.of(m->facts()).first);
  run(r, *m);
  nlohmann::json out{{"model", m->facts().file},
                     {"threads", ms::thread_count()},
                     {"weights", m->facts().weights},
                     {"read_bytes_per_second", r.limits.read},
                     {"flop_per_second", r.limits.peak}};
  std::vector<std::vector<std::string>> rows{{"", "tokens/s", "speed", "of prompts", "layers", "experts", "MB", "MFLOP",
                                              "roof", "reached", "accepted", "same text"}};
  const std::vector<ms::report::decoder_speed> speeds = r.speeds();
  for (const ms::report::decoder_speed& s : speeds) {
    out["decoders"].push_back(to_json(s));
    const double rate = s.stats.tokens_per_second();
    rows.push_back(
        {s.name, fixed(rate, 0), fixed(s.relative, 2), fixed(s.lowest, 2) + "–" + fixed(s.highest, 2),
         fixed(double(s.stats.layer_steps) / std::max(1, s.stats.tokens), 1), fixed(ms::experts_touched(s.stats), 1),
         fixed(s.bytes / 1e6, 2), fixed(s.flop / 1e6, 2), fixed(s.roof, 0), fixed(100 * rate / s.roof, 0) + " %",
         s.stats.drafted ? fixed(100 * s.stats.acceptance_rate(), 0) + " %" : "–", fixed(100 * s.same, 0) + " %"});
  }
  if (o.json.write(out)) return;
  print(table(rows) + "\n" + table_of_stages(speeds));
  print(ms::text("\nPrompts: ", r.prompts.size(), ", of ", r.tokens, " new bytes each; threads: ", ms::thread_count(),
                 ". Weights of this size are read at ", fixed(r.limits.read / 1e9, 1), " GB/s, products run at ",
                 fixed(r.limits.peak / 1e9, 0), " GFLOP/s.\n"));
}

}  // namespace

void prompt_options::declare(CLI::App& app, int least) {
  app.add_option("--prompt", prompt, "The first prompt, whose continuation report shows (a piece of --text)")
      ->type_name("TEXT");
  app.add_option("--prompts", prompts,
                 ms::text("Prompts, pieces of --text", least == 0 ? "; 0 leaves generation out" : "", " (6)"))
      ->check(within(least, 10000))
      ->type_name("N");
  app.add_option("--tokens", tokens, "Bytes to generate for each (what the context has room for)")
      ->check(within(1, 1 << 24))
      ->type_name("N");
}

std::vector<ms::report::decoder_speed> race::speeds() const {
  std::vector<ms::report::decoder_speed> out;
  for (const contestant& c : all) out.push_back(speed(c, all.front(), *this));
  return out;
}

race prepare(any_model& m, std::span<const int> tokens, const prompt_options& o, float threshold) {
  const model_facts& f = m.facts();
  const int context = f.sizes.context, length = std::min(96, std::max(1, context / 4));
  MOESKIP_CHECK(ms::config_error, !tokens.empty(), "--text: is empty: expected something to prompt with");
  MOESKIP_CHECK(ms::config_error, int(o.prompt.size()) < context, "--prompt: expected fewer bytes than the context of ",
                context, ", got ", o.prompt.size());
  const int room = context + 1 - std::max(length, int(o.prompt.size())), count = o.tokens ? o.tokens : room;
  MOESKIP_CHECK(ms::config_error, count <= room, "--tokens: expected at most ", room,
                " beside prompts in a context of ", context, ", got ", count);
  race r{.prompts = prompts_of(tokens, o, length), .tokens = count, .bytes_per_weight = f.bytes_per_weight};
  r.all.push_back({"plain decoding", "All layers for every token.", {decoder_choice::plain}});
  if (f.leaves_early()) {
    r.all.push_back({"early exit", ms::report::note_on_early_exit(threshold), {decoder_choice::early_exit, threshold}});
    r.all.push_back({"self-speculation", std::string(ms::report::note_on_speculation), {decoder_choice::speculative}});
  }
  return r;
}

/// The first prompt runs twice: before that decoders know nothing of the machine.
void run(race& r, any_model& m) {
  const ms::generation options{.max_new_tokens = r.tokens};
  const auto ignore = [](const ms::emitted&) {};
  for (contestant& c : r.all) m.generate(r.prompts.front(), options, c.how, ignore);
  for (const std::vector<int>& prompt : r.prompts)
    for (contestant& c : r.all) {
      c.out.push_back(m.generate(prompt, options, c.how, ignore));
      c.total += c.out.back().stats;
      c.work += c.out.back().work;
    }
  r.limits = m.limits();
}

action declare_bench(CLI::App& app) {
  const auto o = std::make_shared<options>();
  o->model.declare(app);
  app.add_option("--text", o->text, "A UTF-8 text; prompts are pieces of it")->required()->type_name("FILE");
  o->threshold.declare(app), o->prompts.declare(app, 1), o->json.declare(app);
  app.footer(
      wrapped("All decoders continue the same prompts in turn, greedily. speed: against plain decoding of the same "
              "prompt, median, "
              "and the extremes. layers, experts: run and read for a token, drafts included. MB, MFLOP: read and "
              "computed for it. "
              "roof: tokens a second that the machine allows by these, measured in the same process; reached: how much "
              "of that came "
              "true. Below it where a token's time and bytes go: the stages, all of it with what is in none of them, "
              "and what rounds "
              "of speculation draft and verify. ./run bench compare puts a baseline model and every kind of "
              "speculation beside it."));
  return [o] { bench(*o); };
}

}  // namespace tool
