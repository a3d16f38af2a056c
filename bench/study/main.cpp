// ./run study: trains models by the recipes of this folder and measures them.
#include <CLI/CLI.hpp>

#include <cstdlib>

#include "moeskip/formats/text.hpp"
#include "study.hpp"

namespace {

std::vector<int> bytes_of(const std::string& path) {
  return path.empty() ? std::vector<int>{} : ms::tokenizer::byte::encode(ms::read_text(path));
}

int run(int argc, char** argv) {
  std::string names;
  for (const auto& [name, recipe] : study::recipes()) names += (names.empty() ? "" : " ") + name;
  CLI::App app("Trains models by named recipes and measures them.\nRecipes: " + names);
  std::vector<std::string> chosen;
  std::string train, valid, other, out = "study";
  study::options o;
  int threads = 0;
  app.add_option("recipe", chosen, "Which to run, one after the other")->required();
  app.add_option("--corpus", train, "Text to train on")->required()->type_name("FILE");
  app.add_option("--valid", valid, "Text to measure on")->required()->type_name("FILE");
  app.add_option("--other", other, "Text of another kind, to measure on")->type_name("FILE");
  app.add_option("--tokens", o.tokens, "Bytes to train on (10e6)")->type_name("N");
  app.add_option("--seed", o.seed, "Weights, batches and dropout are drawn from it (1)")->type_name("N");
  app.add_option("--out", out, "Folder for results (study)")->type_name("DIR");
  app.add_option("--threads", threads, "Threads to use (all)")->type_name("N");
  app.add_flag("--tiny", o.tiny, "Very small models, three steps: to see that everything runs");
  CLI11_PARSE(app, argc, argv);
  for (const std::string& name : chosen)
    MOESKIP_CHECK(ms::config_error, study::recipes().contains(name), "no recipe is called ", name,
                  "; there are: ", names);
  if (threads > 0) ms::set_thread_count(threads);
  o.train = bytes_of(train), o.valid = bytes_of(valid), o.other = bytes_of(other), o.out = out;
  for (const std::string& name : chosen) study::recipes()[name](name, o);
  return EXIT_SUCCESS;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& e) {
    std::cerr << "study: " << e.what() << "\n";
    return EXIT_FAILURE;
  }
}
