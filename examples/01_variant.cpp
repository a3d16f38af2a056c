// A model is composed of policies. A variant names them, one for each slot; slots left out keep their default. Policies
// are types, their numbers are values, and sizes that do not fit together do not compile.
#include "example.hpp"

namespace ms = moeskip;

struct frugal : ms::variant {
  using router = ms::router::top_k<2>;                   // two experts for each token
  using expert_dropout = ms::expert_dropout::bernoulli;  // whole experts vanish while training
  using layer_dropout = ms::layer_dropout::exponential;  // deeper layers are skipped more often
  using exit_head = ms::exit_head::own;                  // a norm and an unembedding for each exit
  using curriculum = ms::curriculum::rotational;         // exits take turns in learning
  using decoder = ms::speculative_decoder::compose<ms::draft::self, ms::acceptance::exact, ms::draft_length::utility>;
};

constexpr ms::config<frugal> config{
    .sizes = {.layers = 8, .dim = 64, .heads = 4, .kv_heads = 2, .ffn = 128, .experts = 8, .vocab = 256},
    .exits = ms::exits_after(2, 4, 6),
    .router = {.balance_loss = 0.02f},
    .expert_dropout = {.p = 0.1f},
    .layer_dropout = {.p_max = 0.2f}};
static_assert(ms::valid(config));  // try .kv_heads = 3

int main(int argc, char** argv) {
  return example::run(argc, argv, [](const example::arguments&) {
    const ms::model<frugal, ms::cpu<float>> model{config, ms::seed{42}};
    example::print(ms::describe(model));

    const ms::model<frugal, ms::cpu<ms::bf16>> half{config, ms::seed{42}};  // the same, weights in 16 bits
    example::print(ms::text("\nin bf16    ", ms::grouped(ms::footprint(half).bytes_per_token),
                            " bytes read per token\n\nwhat a checkpoint of it says:\n"));
    for (const auto& [key, value] : ms::to_metadata(config)) example::print(ms::text("  ", key, " = ", value, "\n"));
  });
}
