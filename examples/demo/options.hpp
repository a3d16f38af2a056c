// What can be said on the command line.
#pragma once

#include <CLI/CLI.hpp>

#include <cstdint>
#include <optional>
#include <string>

namespace demo {

struct options {
  std::string corpus;                 // a file; empty: moeskip's own sources
  std::uint64_t steps = 0;            // 0: as many as fit into `seconds`
  double seconds = 120;               // for training and validation
  std::string out = "demo";           // folder for model.safetensors, summary.json, report.html
  std::optional<std::string> prompt;  // default: the beginning of the held-out text
  int tokens = 0;                     // to generate; 0: half the context
  int threads = 0;                    // 0: as many as OpenMP gives
  std::uint64_t seed = 42;
  bool bf16 = false, tiny = false;
};

/// What is wrong is said in terms of this range; --help stays short.
template <class N> CLI::Validator within(N lowest, N highest) {
  CLI::Validator range = CLI::Range(lowest, highest);
  range.description("");
  return range;
}

inline void declare(CLI::App& app, options& o) {
  app.add_option("--corpus", o.corpus, "A UTF-8 text file to learn; without it, moeskip's own sources and docs")
      ->type_name("FILE");
  app.add_option("--steps", o.steps, "Train for exactly so many steps, however long it takes")
      ->check(within(1LL, 1'000'000'000LL))
      ->type_name("N");
  app.add_option("--seconds", o.seconds, "Train for as many steps as fit into this time, with validation (120)")
      ->check(within(0.1, 1e6))
      ->type_name("S");
  app.add_option("--out", o.out, "Folder for model.safetensors, summary.json and report.html (demo)")->type_name("DIR");
  app.add_option("--prompt", o.prompt, "The text to continue; without it, the beginning of the held-out text")
      ->type_name("TEXT");
  app.add_option("--tokens", o.tokens, "How many bytes to generate (half the context)")
      ->check(within(1, 1'000'000))
      ->type_name("N");
  app.add_option("--threads", o.threads, "Threads to use (all)")->check(within(1, 1024))->type_name("N");
  app.add_option("--seed", o.seed, "Weights, batches and dropout are drawn from it (42)")->type_name("N");
  app.add_flag("--bf16", o.bf16, "Store weights in 16 bits");
  app.add_flag("--tiny", o.tiny, "A very small model: to see that everything runs");
}

}  // namespace demo
