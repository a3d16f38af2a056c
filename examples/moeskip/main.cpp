// moeskip: what a trained model is, how good it is at every depth, what its experts do, and what skipping buys.
#include <exception>
#include <map>

#include "command.hpp"
#include "moeskip/version.hpp"

namespace {

constexpr const char* about =
    "Trains Mixture-of-Experts models that skip depth, looks into them, and runs them.\n"
    "\n"
    "A first tour:\n"
    "  moeskip train    --corpus T.txt --out M.safetensors         learn a text\n"
    "  moeskip inspect  --model M.safetensors                      what is in the file\n"
    "  moeskip eval     --model M.safetensors --text T.txt         quality by exit, and what the experts do\n"
    "  moeskip generate --model M.safetensors --prompt 'The '      continue a text\n"
    "  moeskip report   --model M.safetensors --text T.txt --out report.html\n"
    "\n"
    "Models are checkpoints of the variants in examples/models; their tokens are bytes. moeskip COMMAND --help says "
    "more.";

/// CLI11 would only say that a command is required.
void expect_command(const CLI::App& app, const std::string& first) {
  if (first.empty() || first.front() == '-') return;
  std::string names;
  for (const CLI::App* const one : app.get_subcommands({})) {
    if (one->get_name() == first) return;
    names += (names.empty() ? "" : ", ") + one->get_name();
  }
  throw CLI::ValidationError("no such command: " + first + "; there are " + names, CLI::ExitCodes::ValidationError);
}

int run(int argc, char** argv) {
  CLI::App app(about, "moeskip");
  app.set_version_flag("--version", moeskip::text("moeskip ", MOESKIP_VERSION_MAJOR, ".", MOESKIP_VERSION_MINOR, ".",
                                                  MOESKIP_VERSION_PATCH));
  app.require_subcommand(1);
  std::map<CLI::App*, tool::action> actions;
  const auto add = [&](const char* name, const char* what, tool::action (*declare)(CLI::App&)) {
    CLI::App* const command = app.add_subcommand(name, what);
    actions[command] = declare(*command);
  };
  add("train", "Train a model by a recipe, with a loss at every exit; go on where a run was stopped",
      tool::declare_train);
  add("inspect", "What a checkpoint holds: variant, sizes, exits, weights, bytes read for a token",
      tool::declare_inspect);
  add("eval", "Bits per byte at every exit, how confident exits are, and what the experts do", tool::declare_eval);
  add("generate", "Continue a prompt plainly, with early exit or with self-speculation", tool::declare_generate);
  add("calibrate", "Choose the threshold of early exit, with a guarantee, and keep it in the checkpoint",
      tool::declare_calibrate);
  add("bench", "Tokens a second of each decoder, against plain decoding and against the machine's roof",
      tool::declare_bench);
  add("report", "One HTML page about a model and a text: depth, experts, generation, training", tool::declare_report);
  std::string command;
  try {
    expect_command(app, argc > 1 ? argv[1] : "");
    app.parse(argc, argv);
    CLI::App* const chosen = app.get_subcommands().front();
    command = " " + chosen->get_name();
    actions.at(chosen)();
    return 0;
  } catch (const CLI::Success& e) {
    return app.exit(e);  // --help, --version
  } catch (const CLI::ParseError& e) {
    for (const CLI::App* const one : app.get_subcommands()) command = " " + one->get_name();
    std::fprintf(stderr, "moeskip%s: %s (moeskip%s --help lists the options)\n", command.c_str(), e.what(),
                 command.c_str());
    return 2;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "moeskip%s: %s\n", command.c_str(), e.what());
    return 1;
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "moeskip: %s\n", e.what());
    return 1;
  }
}
