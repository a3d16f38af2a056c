// Our side of train_vs_pytorch.py: a training step each time a line comes in, its seconds as a line out. Between steps
// it only waits, so that the other side has the machine.
//   8 layers, dim 512, 8 experts top-2, ffn 1024, vocabulary 256; 8 sequences of 256 tokens
#include <iostream>
#include <string>

#include "../limits.hpp"
#include "moeskip/moeskip.hpp"

namespace ms = moeskip;

namespace {

struct plain : ms::variant {};
constexpr ms::config<plain> shape{
    .sizes = {
        .layers = 8, .dim = 512, .heads = 8, .kv_heads = 2, .ffn = 1024, .experts = 8, .vocab = 256, .context = 256}};
static_assert(ms::valid(shape));

template <class B> void serve() {
  ms::model<plain, B> m(shape, ms::seed{1});
  ms::trainer<plain, B> trainer(m, {.steps = 1'000'000, .optimizer = {.lr = 1e-4}});
  std::vector<int> text(1 << 20);
  for (std::size_t i = 0; i < text.size(); ++i) text[i] = int(i * i / 91 % 256);
  ms::random_windows data(text, 8, 256, ms::seed{2});
  const double flops = ms::training_flops(m, 8, 256, trainer.exit_weights_now(), ms::seed{1}, 0);
  std::cout << flops << " " << bench::product_peak<typename B::product>() << std::endl;
  for (std::string line; std::getline(std::cin, line);)
    std::cout << bench::time_of([&] { trainer.step(data); }) << std::endl;
}

}  // namespace

int main(int argc, char** argv) {
  return bench::guarded([&] {
    const std::string type = argc > 1 ? argv[1] : "f32";
    MOESKIP_CHECK(ms::config_error, argc <= 2 && (type == "f32" || type == "bf16"), "expected f32 or bf16, got ", type);
    if (type == "f32") serve<ms::cpu<float>>();
    else serve<ms::cpu<float, ms::isa::native, ms::bf16>>();
  });
}
