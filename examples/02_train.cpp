// example_02_train [TEXT [CHECKPOINT]]: trains a small byte-level model on a text file and saves it. Where no text is
// given it learns a rhyme; the checkpoint is model.safetensors unless it is named. 03 and 04 run it.
#include "example.hpp"

namespace ms = moeskip;

int main(int argc, char** argv) {
  return example::run(argc, argv, [](const example::arguments& given) {
    const std::string text = given.files.empty() ? example::rhyme() : ms::read_text(given.files[0]);
    const std::vector<int> tokens = ms::tokenizer::byte::encode(text);

    const auto config = example::small_config<example::skipping>(given.tiny);
    ms::model<example::skipping, ms::cpu<float>> model{config, ms::seed{42}};
    example::print(ms::describe(model));

    // 8 sequences of 64 tokens a step, from random places; all randomness comes from (seed, step).
    ms::random_windows batches(tokens, given.tiny ? 2 : 8, given.tiny ? 32 : 64, ms::seed{42});
    const ms::training<example::skipping> options{.steps = given.tiny ? 10u : 200u, .optimizer = {.lr = 3e-3}};
    ms::trainer trainer(model, options);
    example::print(ms::describe_memory(trainer, batches.sequences(), batches.length()));
    while (trainer.next_step() < options.steps) {
      const auto report = trainer.step(batches);
      const std::uint64_t done = trainer.next_step();
      if (done % (options.steps / 10) == 0)
        example::print(ms::text("step ", done, "  loss ",
                                example::fixed(report.losses.exits[std::size_t(model.layers())], 3), "\n"));
    }

    for (const ms::exit_quality& q : ms::evaluate(model, tokens, 64))
      example::print(
          ms::text("exit after layer ", q.exit_layer, ": ", example::fixed(q.bits_per_token, 3), " bits per byte\n"));

    const std::string path = given.files.size() > 1 ? given.files[1] : "model.safetensors";
    ms::save(model, path);  // all or nothing: a crash never leaves half a file
    example::print(ms::text("saved ", path, "\n"));
  });
}
