// Generates on the GPU, or says in one sentence that there is none.
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
    std::printf(
        "generated %zu tokens on the GPU, %s by a loop on it\n", text.size(),
        text == generated(ms::decoder::on_device<ms::decoder::early_exit<leads>>{leaves}) ? "the same" : "others");
  } catch (const ms::error& e) {
    std::printf("%s\n", e.what());
  }
}
