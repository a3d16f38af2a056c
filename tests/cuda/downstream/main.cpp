// Generates and trains on the GPU, or says in one sentence that there is none.
#include <cmath>
#include <cstdio>

#include <moeskip/moeskip.hpp>

#include <moeskip/cuda.hpp>

#include "mine.hpp"

namespace ms = moeskip;

int main() {
  try {
    constexpr ms::config<mine> config{
        .sizes = {.layers = 2, .dim = 64, .heads = 4, .ffn = 96, .experts = 4, .vocab = 50, .context = 64},
        .exits = ms::exits_after(1)};
    ms::model<mine, ms::cuda<ms::bf16>> model{config, ms::seed{1}};
    ms::session session(model);
    const std::vector<int> prompt{1, 2, 3};
    const auto generated = [&](const auto& decoder) {
      return ms::generate(session, prompt, {.max_new_tokens = 8}, decoder, [](const ms::emitted&) {}).ids();
    };
    const ms::decoder::early_exit<leads> leaves{};
    const auto text = generated(leaves);
    const bool same = text == generated(ms::decoder::on_device<ms::decoder::early_exit<leads>>{leaves});

    ms::trainer<mine, ms::cuda<ms::bf16>> trainer(model, {.steps = 2});
    std::vector<int> corpus(400);
    for (std::size_t i = 0; i < corpus.size(); ++i) corpus[i] = int(i * i % 50);
    ms::random_windows batches(corpus, 2, 32, ms::seed{1});
    double loss = 0;  // of an untrained model: that of a guess, log 50
    for (int step = 0; step < 2; ++step) loss = trainer.step(batches).losses.exits[2];
    std::printf("generated %zu tokens on the GPU, %s by a loop on it; trained, with a loss that is %s\n", text.size(),
                same ? "the same" : "others", std::abs(loss - std::log(50.)) < 1 ? "plausible" : "not plausible");
  } catch (const ms::error& e) {
    std::printf("%s\n", e.what());
  }
}
