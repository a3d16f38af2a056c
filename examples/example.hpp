// What the examples share: their arguments, a text to learn, and a small model of it.
#pragma once

#include <cstdint>
#include <cstdio>
#include <exception>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "moeskip/model/checkpoint.hpp"
#include "moeskip/moeskip.hpp"

namespace example {
namespace ms = moeskip;

/// example [--tiny] [FILE …]
struct arguments {
  bool tiny = false;  // the smallest model and a few steps: to see that everything runs
  std::vector<std::string> files;
};

/// Runs the body; a failure becomes one line and exit status 1.
template <class Body> int run(int argc, char** argv, Body&& body) {
  try {
    arguments given;
    for (int i = 1; i < argc; ++i) {
      if (std::string_view(argv[i]) == "--tiny") given.tiny = true;
      else given.files.emplace_back(argv[i]);
    }
    body(given);
    return 0;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "example: %s\n", e.what());
    return 1;
  }
}

inline void print(std::string_view text) { std::fwrite(text.data(), 1, text.size(), stdout), std::fflush(stdout); }

/// A number with so many decimals: "0.90".
inline std::string fixed(double value, int decimals) {
  char out[64];
  std::snprintf(out, sizeof out, "%.*f", decimals, value);
  return out;
}

/// Byte tokens as text that can be printed: what is not UTF-8 becomes U+FFFD.
inline std::string readable(std::span<const int> tokens) {
  ms::tokenizer::byte::stream characters;
  std::string out;
  for (const int token : tokens) out += characters.push(token);
  return out + characters.flush();
}

/// The house that Jack built: 2.4 kB that repeat themselves, so that a tiny model learns them within seconds.
inline std::string rhyme() {
  constexpr std::string_view tail[] = {"the house that Jack built.\n",
                                       "the malt that lay in\n",
                                       "the rat that ate\n",
                                       "the cat that killed\n",
                                       "the dog that worried\n",
                                       "the cow with the crumpled horn that tossed\n",
                                       "the maiden all forlorn that milked\n",
                                       "the man all tattered and torn that kissed\n",
                                       "the priest all shaven and shorn that married\n",
                                       "the cock that crowed in the morn that waked\n",
                                       "the farmer sowing his corn that kept\n",
                                       "the horse and the hound and the horn that belonged to\n"};
  std::string out;
  for (std::size_t verse = 0; verse < std::size(tail); ++verse) {
    out += "This is ";
    for (std::size_t i = verse + 1; i-- > 0;) out += tail[i];
    out += "\n";
  }
  return out;
}

/// What examples 02 to 04 train and run: trained to be left early.
struct skipping : ms::variant {
  using expert_dropout = ms::expert_dropout::bernoulli;
  using layer_dropout = ms::layer_dropout::exponential;
  using curriculum = ms::curriculum::rotational;
};

template <class V> constexpr ms::config<V> small_config(bool tiny) {
  ms::config<V> c;
  if (tiny) c.sizes = {.layers = 4, .dim = 16, .heads = 2, .ffn = 16, .experts = 4, .vocab = 256, .context = 256};
  else c.sizes = {.layers = 6, .dim = 96, .heads = 3, .ffn = 96, .experts = 8, .vocab = 256, .context = 256};
  c.exits = ms::exits_every(2, c.sizes.layers);
  return c;
}

/// The model in the file that was given (example 02 writes one), or else one that has just learned the rhyme.
inline ms::model<skipping, ms::cpu<float>> trained(const arguments& given) {
  if (!given.files.empty()) return ms::load<skipping, ms::cpu<float>>(given.files[0]);
  ms::model<skipping, ms::cpu<float>> model{small_config<skipping>(given.tiny), ms::seed{42}};
  const std::vector<int> tokens = ms::tokenizer::byte::encode(rhyme());
  ms::random_windows batches(tokens, given.tiny ? 2 : 8, given.tiny ? 32 : 64, ms::seed{42});
  const ms::training<skipping> options{.steps = given.tiny ? 10u : 200u, .optimizer = {.lr = 3e-3}};
  ms::trainer run(model, options);
  print(ms::text("training for ", options.steps, " steps …\n"));
  while (run.next_step() < options.steps) run.step(batches);
  return model;
}

}  // namespace example
