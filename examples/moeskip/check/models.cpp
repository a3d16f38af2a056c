// Writes very small untrained models into the current folder: of every variant that the tool knows, a baseline, one
// that it does not know, one with another vocabulary, and one without exits. check.cmake tries the tool on them.
#include <cstdio>
#include <exception>

#include "../../models/models.hpp"
#include "moeskip/model/checkpoint.hpp"

namespace ms = moeskip;

namespace {

constexpr ms::sizes tiny{
    .layers = 4, .dim = 16, .heads = 2, .kv_heads = 1, .ffn = 8, .experts = 5, .vocab = 256, .context = 48};

struct stranger : ms::variant {
  using router = ms::router::top_k<3>;
};

template <class V, class B = ms::cpu<float>> void write(const char* path, ms::sizes s, ms::layer_set exits) {
  ms::save(ms::model<V, B>({.sizes = s, .exits = exits}, ms::seed{7}), path);
}

}  // namespace

int main() {
  try {
    ms::sizes every_4th = tiny, dense = tiny, baseline = tiny, other_vocabulary = tiny;
    every_4th.moe_every = 4, every_4th.dense_ffn = 12;
    dense.moe_every = 0, dense.dense_ffn = 12;
    ++baseline.experts;  // in place of the shared one
    other_vocabulary.vocab = 300;
    write<models::all_moe>("all_moe.safetensors", tiny, ms::exits_after(1, 2));
    write<models::all_moe, ms::cpu<ms::bf16>>("bf16.safetensors", tiny, ms::exits_after(2));
    write<models::every_4th>("every_4th.safetensors", every_4th, ms::exits_after(2));
    write<models::draft>("draft.safetensors", dense, {});
    write<models::draft>("two_experts.safetensors", tiny, ms::exits_after(2));
    write<models::all_moe_baseline>("all_moe_baseline.safetensors", baseline, {});
    write<stranger>("stranger.safetensors", tiny, {});
    write<models::draft>("vocabulary.safetensors", other_vocabulary, {});
    return 0;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
