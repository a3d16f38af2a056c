// A model with the router of 05_your_own_router.hpp, trained at three temperatures.
#include "05_your_own_router.hpp"
#include "example.hpp"

namespace ms = moeskip;

struct mine : ms::variant {
  using router = tempered;
};

int main(int argc, char** argv) {
  return example::run(argc, argv, [](const example::arguments& given) {
    const std::vector<int> tokens = ms::tokenizer::byte::encode(example::rhyme());
    for (const float temperature : {0.5f, 1.f, 2.f}) {
      ms::config<mine> config = example::small_config<mine>(given.tiny);
      config.router.temperature = temperature;
      ms::model<mine, ms::cpu<float>> model{config, ms::seed{42}};
      ms::random_windows batches(tokens, 2, 32, ms::seed{42});
      const ms::training<mine> options{.steps = given.tiny ? 5u : 100u, .optimizer = {.lr = 3e-3}};
      ms::trainer trainer(model, options);
      while (trainer.next_step() < options.steps) trainer.step(batches);

      example::print(ms::text("temperature ", temperature, ": ",
                              example::fixed(ms::evaluate(model, tokens, 32).back().bits_per_token, 3),
                              " bits per byte\n"));
    }
  });
}
