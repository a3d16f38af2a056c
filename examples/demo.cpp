// The demonstration: trains a small mixture of experts on a text, saves it, loads it back, measures every exit on text
// that it has not seen, lets three decoders continue the same prompt, and writes a page about all of it.
#include <cmath>
#include <filesystem>

#include "demo/decoding.hpp"
#include "demo/options.hpp"
#include "demo/report.hpp"
#include "demo/summary.hpp"
#include "demo/training.hpp"
#include "moeskip/model/checkpoint.hpp"

namespace {
using namespace demo;

/// Makes the output folder and tries whether files can be written there, before hours of training.
void prepare_folder(const std::filesystem::path& folder) {
  std::error_code failed;
  std::filesystem::create_directories(folder, failed);
  MOESKIP_CHECK(ms::file_error, !failed, "--out: cannot create the folder '", folder.string(), "': ", failed.message());
  for (const char* name : {"model.safetensors", "summary.json", "report.html"}) ms::atomic_file attempt(folder / name);
}

void print_exits(const std::vector<ms::exit_quality>& exits, const terminal& out) {
  for (const ms::exit_quality& q : exits) {
    const int length = int(std::min(40.0, 5 * q.bits_per_token));  // 8 bits, no compression at all: 40 characters
    std::string bar;
    for (int i = 0; i < length; ++i) bar += "━";
    const colour c = colour_of_exit(q.exit_layer, exits.back().exit_layer);
    out.print(ms::text("  after layer ", right(ms::text(q.exit_layer), 3), right(fixed(q.bits_per_token, 3), 8),
                       " bits per byte  ", out.paint(c, bar), "\n"));
  }
}

template <class B>
void run(const options& o, const task& t, const std::string& prompt, int tokens, const terminal& out) {
  out.heading("Model");
  auto m = t.fresh_model<B>();
  const std::string facts = ms::describe(m);
  for (std::string_view rest = facts; !rest.empty(); rest.remove_prefix(rest.find('\n') + 1)) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    out.item(line.substr(0, line.find(' ')),
             line.substr(std::min(line.find_first_not_of(' ', line.find(' ')), line.size())));
  }

  out.heading("Training");
  std::uint64_t steps = o.steps;
  if (!steps) {
    out.print("  timing a few steps …\n");
    steps = steps_within<B>(o.seconds, t);
    out.print(ms::text("  ", ms::grouped(ms::index_t(steps)), " steps fit into ", o.seconds, " seconds; --steps ",
                       steps, " repeats this run\n"));
  }
  const training_outcome trained = train(m, t, steps, out);
  const std::filesystem::path folder = o.out, checkpoint = folder / "model.safetensors";
  ms::save(m, checkpoint);
  out.print(ms::text("  trained for ", minutes(trained.seconds), ", ",
                     ms::grouped(ms::index_t(trained.tokens_per_second())), " tokens/s; saved ", checkpoint.string(),
                     "\n"));

  out.heading("Held-out text, by exit");
  auto loaded = ms::load<variant, B>(checkpoint);
  ms::arena memory;
  ms::expert_observer watch(memory, loaded.sizes().vocab);
  const auto exits = validate(loaded, t, watch);
  print_exits(exits, out);

  out.heading("Generation");
  decoding<B> decoders(loaded, t.s, prompt, tokens, out);
  decoders.show();

  out.heading("Comparison");
  const comparison compared = decoders.measure();
  print_table(compared, out);
  write(summary(t.text.name, trained, exits, compared), folder / "summary.json");
  write_report(folder / "report.html", loaded, t, exits, watch, trained, compared, prompt);
  out.print(ms::text("\n  saved ", (folder / "summary.json").string(), "\n        ", (folder / "report.html").string(),
                     ", a page to open in a browser: which experts are dead, what each exit costs\n"));
}

void start(const options& o) {
  const terminal out;
  const shape s = o.tiny ? tiny() : full();
  MOESKIP_CHECK(ms::config_error, std::isfinite(o.seconds), "--seconds: expected a number, got ", o.seconds);
  if (o.threads > 0) ms::set_thread_count(o.threads);
  const task t{s, read_corpus(o.corpus, MOESKIP_SOURCE_DIR, s), ms::seed{o.seed}};
  const std::string prompt = o.prompt.value_or(t.text.beginning);
  const int context = s.model.sizes.context, tokens = o.tokens ? o.tokens : context / 2;
  MOESKIP_CHECK(ms::config_error, !prompt.empty() && ms::is_utf8(prompt), "--prompt: expected UTF-8 text, got ",
                prompt.empty() ? "nothing" : "other bytes");
  MOESKIP_CHECK(ms::config_error, prompt.size() + std::size_t(tokens) <= std::size_t(context), "prompt (",
                prompt.size(), " bytes) and --tokens (", tokens, ") must fit into the context of ", context);
  prepare_folder(o.out);

  out.print(
      out.bold(ms::text("moeskip ", MOESKIP_VERSION_MAJOR, ".", MOESKIP_VERSION_MINOR, ".", MOESKIP_VERSION_PATCH)) +
      out.paint(grey, "  a mixture of experts that skips depth") + "\n");
  out.heading("Text");
  out.item("corpus", t.text.name);
  out.item("size", ms::text(ms::grouped(ms::index_t(t.text.training.size())), " bytes to learn, ",
                            ms::grouped(ms::index_t(t.text.held_out.size())), " held out"));
  if (o.bf16) run<ms::cpu<ms::bf16>>(o, t, prompt, tokens, out);
  else run<ms::cpu<float>>(o, t, prompt, tokens, out);
}

}  // namespace

int main(int argc, char** argv) {
  options o;
  CLI::App app{"Trains a small mixture of experts on a text and compares three ways to run it."};
  declare(app, o);
  try {
    app.parse(argc, argv);
    start(o);
    return 0;
  } catch (const CLI::Success& e) {
    return app.exit(e);  // --help
  } catch (const CLI::ParseError& e) {
    std::fprintf(stderr, "demo: %s (demo --help lists the options)\n", e.what());
  } catch (const std::exception& e) {
    std::fprintf(stderr, "demo: %s\n", e.what());
  }
  return 1;
}
