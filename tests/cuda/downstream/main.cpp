// Generates on the GPU, or says in one sentence that there is none.
#include <cstdio>

#include <moeskip/moeskip.hpp>

#include <moeskip/cuda.hpp>

#include "mine.hpp"

namespace ms = moeskip;

int main() {
  try {
    constexpr ms::config<mine> config{
        .sizes = {.layers = 2, .dim = 64, .heads = 4, .ffn = 96, .experts = 4, .vocab = 50, .context = 64}};
    ms::model<mine, ms::cuda<ms::bf16>> model{config, ms::seed{1}};
    ms::session session(model);
    const std::vector<int> prompt{1, 2, 3};
    const auto text =
        ms::generate(session, prompt, {.max_new_tokens = 8}, ms::decoder::autoregressive{}, [](const ms::emitted&) {});
    std::printf("generated %zu tokens on the GPU\n", text.ids().size());
  } catch (const ms::error& e) {
    std::printf("%s\n", e.what());
  }
}
