// example_03_generate_early_exit [CHECKPOINT]: a token leaves the model at the first exit that is sure enough. The
// lower the threshold, the fewer layers are run, and the further the text strays from that of the full model.
#include "example.hpp"

namespace ms = moeskip;

int main(int argc, char** argv) {
  return example::run(argc, argv, [](const example::arguments& given) {
    auto model = example::trained(given);
    const std::vector<int> prompt = ms::tokenizer::byte::encode("This is the farmer ");
    const ms::generation options{.max_new_tokens = given.tiny ? 16 : 128};
    ms::session session(model);  // keys, values and scratch: allocated once, used by every generation below

    for (const float threshold : {0.3f, 0.6f, 0.9f, 0.99f}) {
      const ms::decoder::early_exit<> decoder{.rule = {.threshold = threshold}};
      ms::tokenizer::byte::stream text;
      std::vector<int> left_after(std::size_t(model.layers()) + 1);  // tokens by exit layer

      example::print(ms::text("\n--- threshold ", threshold, "\n"));
      const ms::generated out = ms::generate(session, prompt, options, decoder, [&](const ms::emitted& e) {
        example::print(text.push(e.token));  // whole characters only
        ++left_after[std::size_t(e.exit_layer)];
      });

      example::print(ms::text(text.flush(), "\n    ", example::fixed(out.stats.tokens_per_second(), 0), " tokens/s, ",
                              example::fixed(double(out.stats.layer_steps) / out.stats.tokens, 2),
                              " layers per token;"));
      for (std::size_t e = 1; e < left_after.size(); ++e)
        if (left_after[e]) example::print(ms::text(" ", left_after[e], " left after layer ", e));
      example::print("\n");
    }
  });
}
