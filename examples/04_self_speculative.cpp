// example_04_self_speculative [CHECKPOINT]: the first layers draft a few tokens, the remaining layers verify them all
// at once. The text is exactly the one of plain decoding; what changes is how often the deep layers are run.
#include "example.hpp"

namespace ms = moeskip;
using fixed_length = ms::speculative_decoder::compose<ms::draft::self, ms::acceptance::exact, ms::draft_length::fixed>;

int main(int argc, char** argv) {
  return example::run(argc, argv, [](const example::arguments& given) {
    auto model = example::trained(given);
    const std::vector<int> prompt = ms::tokenizer::byte::encode("This is the farmer ");
    const ms::generation options{.max_new_tokens = given.tiny ? 16 : 200};
    const auto ignore = [](const ms::emitted&) {};

    const ms::generated plain = ms::generate(model, prompt, options, ms::decoder::autoregressive{}, ignore);
    example::print(ms::text("\n", example::readable(plain.ids()), "\n\nplain decoding: ", plain.stats.rounds,
                            " passes, ", example::fixed(plain.stats.tokens_per_second(), 0), " tokens/s\n"));

    const ms::generated chosen = ms::generate(model, prompt, options, ms::speculative_decoder::compose<>{}, ignore);
    example::print(ms::text("exit and length chosen by what pays: ", chosen.stats.rounds, " passes, ",
                            example::fixed(chosen.stats.tokens_per_second(), 0),
                            " tokens/s, identical to plain: ", chosen.ids() == plain.ids() ? "yes" : "no", "\n"));

    for (int exit_layer = 1; exit_layer < model.layers(); ++exit_layer) {
      if (!model.configuration().exits.contains(exit_layer)) continue;  // others were not trained
      for (const int num_speculations : {2, 4, 8}) {
        const fixed_length decoder{.draft = {.exit_layer = exit_layer},
                                   .length = {.num_speculations = num_speculations}};
        const ms::generated drafted = ms::generate(model, prompt, options, decoder, ignore);
        example::print(ms::text("drafts of ", num_speculations, " after layer ", exit_layer, ": ", drafted.stats.rounds,
                                " verifications, ", example::fixed(100 * drafted.stats.acceptance_rate(), 0),
                                " % accepted, ", example::fixed(drafted.stats.tokens_per_second(), 0),
                                " tokens/s, identical to plain: ", drafted.ids() == plain.ids() ? "yes" : "no", "\n"));
      }
    }
  });
}
