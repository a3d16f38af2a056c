// moeskip generate: a prompt in, text out, and what it took.
#include "command.hpp"
#include "moeskip/formats/text.hpp"
#include "moeskip/formats/tokenizer/byte.hpp"

namespace tool {

namespace {

struct options {
  model_options model;
  threshold_option threshold;
  json_options json;
  std::string prompt, prompt_file, decoder = "speculative";
  int tokens = 0;
  ms::sampling sampling;
  std::uint64_t seed = 0;
};

double mean_exit(const ms::generated& g) {
  double sum = 0;
  for (const ms::emitted& e : g.tokens) sum += e.exit_layer;
  return g.tokens.empty() ? 0 : sum / double(g.tokens.size());
}

nlohmann::json to_json(const std::string& prompt, const ms::generated& g, const std::string& decoder) {
  nlohmann::json out{{"prompt", prompt},
                     {"text", ms::tokenizer::byte::decode(g.ids())},
                     {"decoder", decoder},
                     {"finish", ms::describe(g.reason)},
                     {"tokens_per_second", g.stats.tokens_per_second()},
                     {"mean_exit_layer", mean_exit(g)},
                     {"layers_per_token", double(g.stats.layer_steps) / std::max(1, g.stats.tokens)},
                     {"acceptance_rate", nullptr}};
  if (g.stats.drafted) out["acceptance_rate"] = g.stats.acceptance_rate();
  for (const ms::emitted& e : g.tokens)
    out["tokens"].push_back({{"id", e.token}, {"exit_layer", e.exit_layer}, {"drafted", e.drafted}});
  return out;
}

void run(const options& o) {
  MOESKIP_CHECK(ms::config_error, o.prompt.empty() != o.prompt_file.empty(),
                "expected either --prompt or --prompt-file, got ", o.prompt.empty() ? "neither" : "both");
  const std::string prompt =
      o.prompt.empty() ? blaming("--prompt-file", [&] { return ms::read_text(o.prompt_file); }) : o.prompt;
  const auto m = o.model.open();
  const model_facts& f = m->facts();
  const int context = f.sizes.context, length = int(std::min<std::size_t>(prompt.size(), 1u << 30));
  MOESKIP_CHECK(ms::config_error, length <= context, o.prompt.empty() ? "--prompt-file" : "--prompt", ": the prompt (",
                prompt.size(), " bytes) must fit into the context of ", context);
  const int room = context - length + 1, tokens = o.tokens ? o.tokens : std::min(200, room);
  MOESKIP_CHECK(ms::config_error, tokens <= room, "--tokens: expected at most ", room, ", since the prompt fills ",
                length, " of a context of ", context, ", got ", tokens);
  decoder_choice how;
  std::string name = o.decoder;
  if (o.decoder == "speculative") how.what = decoder_choice::speculative;
  if (o.decoder == "early-exit") {
    how.what = decoder_choice::early_exit, how.threshold = o.threshold.of(f).first;
    name += ms::text(" at ", how.threshold);
  }
  ms::generation options{.max_new_tokens = tokens, .sampling = o.sampling};
  options.sampling.seed = {o.seed};

  ms::tokenizer::byte::stream characters;
  const bool stream = !o.json.print;
  if (stream) print(prompt);
  const ms::generated g = m->generate(ms::tokenizer::byte::encode(prompt), options, how, [&](const ms::emitted& e) {
    if (stream) print(characters.push(e.token)), std::fflush(stdout);
  });
  if (stream) print(characters.flush() + "\n"), std::fflush(stdout);
  if (o.json.write(to_json(prompt, g, name))) return;
  std::string line = ms::text(name, ": ", g.stats.tokens, " tokens, ", fixed(g.stats.tokens_per_second(), 0),
                              " a second, ", fixed(double(g.stats.layer_steps) / std::max(1, g.stats.tokens), 1),
                              " of ", f.sizes.layers, " layers for each");
  if (how.what == decoder_choice::early_exit) line += ms::text(", left after ", fixed(mean_exit(g), 1), " on average");
  if (g.stats.drafted) line += ms::text(", ", g.stats.accepted, " of ", g.stats.drafted, " drafted tokens accepted");
  std::fprintf(stderr, "\n%s\n", line.c_str());
}

}  // namespace

action declare_generate(CLI::App& app) {
  const auto o = std::make_shared<options>();
  o->model.declare(app);
  app.add_option("--prompt", o->prompt, "The text to continue")->type_name("TEXT");
  app.add_option("--prompt-file", o->prompt_file, "A file with it")->type_name("FILE");
  app.add_option("--decoder", o->decoder,
                 "plain: all layers for every token. early-exit: a token leaves where an exit is confident; lossy. "
                 "speculative: "
                 "shallow layers draft, all layers check; the text of plain (speculative)")
      ->check(CLI::IsMember({"plain", "early-exit", "speculative"}).description(""))
      ->type_name("NAME");
  o->threshold.declare(app);
  app.add_option("--tokens", o->tokens, "Bytes to generate (200, or what the context has room for)")
      ->check(within(1, 1 << 24))
      ->type_name("N");
  app.add_option("--temperature", o->sampling.temperature, "0: always the most likely byte; 1: as the model says (0)")
      ->check(within(0.0f, 100.0f))
      ->type_name("T");
  app.add_option("--top-k", o->sampling.top_k, "Draw from the K most likely only")
      ->check(within(0, 1 << 24))
      ->type_name("K");
  app.add_option("--top-p", o->sampling.top_p, "Draw from the most likely of this mass together")
      ->check(within(0.0f, 1.0f))
      ->type_name("P");
  app.add_option("--seed", o->seed, "Draws come from it (0)")->type_name("N");
  o->json.declare(app);
  app.footer(wrapped(
      "The text goes to standard output, what it took to standard error. With --json the output says of every token "
      "after "
      "how many layers it was settled, and whether a draft proposed it."));
  return [o] { run(*o); };
}

}  // namespace tool
