// example_06_exits_for_a_pretrained_model FOLDER [TEXT [CHECKPOINT]]: takes an OLMoE model from its folder, as
// transformers writes it, and trains it to be left early. First the exits alone, low-rank corrections of the model's
// own head, while the model stays as it is; then everything, by LayerSkip's recipe: layer dropout, rotating exits.
// Other models: another preset. Beside the model training needs three scalars a weight, with the model frozen little
// more than one.
#include "example.hpp"
#include "moeskip/formats/tokenizer/byte_level.hpp"
#include "moeskip/model/loading_bar.hpp"
#include "moeskip/model/presets/olmoe.hpp"
#include "moeskip/train/optimizer/only_exits.hpp"

namespace ms = moeskip;

struct skipping : ms::presets::olmoe {
  using exit_head = ms::exit_head::low_rank;
  using layer_dropout = ms::layer_dropout::exponential;
  using curriculum = ms::curriculum::rotational;
};
using model = ms::model<skipping, ms::cpu<float>>;

/// Ids of the text by the folder's tokenizer; for --tiny, whose models have none, bytes that the vocabulary holds.
std::vector<int> encode(const std::filesystem::path& folder, const std::string& text, int vocab, bool tiny) {
  if (!tiny) return ms::tokenizer::byte_level(folder).encode(text);
  std::vector<int> tokens = ms::tokenizer::byte::encode(text);
  for (int& token : tokens) token %= vocab;
  return tokens;
}

void print_exits(const char* when, model& m, std::span<const int> tokens) {
  example::print(ms::text(when, ", bits per token: "));
  for (const ms::exit_quality& q : ms::evaluate(m, tokens, 32))
    example::print(ms::text("after ", q.exit_layer, " layers ", example::fixed(q.bits_per_token, 3), "  "));
  example::print("\n");
}

template <class O> void train(model& m, const ms::training<skipping, O>& options, ms::random_windows& batches) {
  ms::trainer trainer(m, options);
  while (trainer.next_step() < options.steps) trainer.step(batches);
}

int main(int argc, char** argv) {
  return example::run(argc, argv, [](const example::arguments& given) {
    MOESKIP_CHECK(ms::config_error, !given.files.empty(), "expected the folder of an OLMoE model");
    const auto with_exits = [](auto& config) {
      config.exits = ms::exits_every(std::max(1, config.sizes.layers / 4), config.sizes.layers);
      config.layer_dropout.p_max = 0.1f, config.sizes.context = std::min(config.sizes.context, 1024);
    };
    model m =
        ms::load_pretrained<skipping, ms::cpu<float>>(given.files[0], with_exits, ms::loading_bar(given.files[0]));
    example::print(ms::describe(m));
    const std::string text = given.files.size() > 1 ? ms::read_text(given.files[1]) : example::rhyme();
    const std::vector<int> tokens = encode(given.files[0], text, m.sizes().vocab, given.tiny);
    ms::random_windows batches(tokens, 4, 32, ms::seed{42});

    print_exits("as loaded", m, tokens);
    const std::uint64_t steps = given.tiny ? 20 : 500;
    train<ms::only_exits<ms::adamw>>(m,
                                     {.steps = steps,
                                      .exit_scale = 1.0,
                                      .exit_weighting = ms::exit_weight_rule::uniform,
                                      .distill = 0.5,
                                      .curriculum = {},
                                      .optimizer = {{.lr = 1e-2}}},
                                     batches);
    print_exits("exits trained", m, tokens);
    train<ms::adamw>(m, {.steps = steps, .exit_scale = 1.0, .optimizer = {.lr = 1e-3}}, batches);
    print_exits("all trained", m, tokens);
    ms::save(m, given.files.size() > 2 ? given.files[2] : "layerskip.safetensors");
  });
}
