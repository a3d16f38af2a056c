// A program that uses moeskip as users do: a model of two layers generates, is saved, loaded, and generates the same
// again. It prints the version at the end, and only if all is as it should be.
#include <cstdio>
#include <exception>
#include <moeskip/model/checkpoint.hpp>
#include <moeskip/moeskip.hpp>

namespace ms = moeskip;

#if defined(WITH_OPENMP) && !defined(_OPENMP)
  #error "moeskip::moeskip must bring OpenMP's flags"
#endif

struct mine : ms::variant {
  using router = ms::router::switch_top1;
};
constexpr ms::config<mine> config{
    .sizes = {.layers = 2, .dim = 16, .heads = 2, .ffn = 8, .experts = 4, .vocab = 32, .context = 24},
    .exits = ms::exits_after(1)};
static_assert(ms::valid(config));

int main() try {
  using backend = ms::cpu<float>;
  ms::model<mine, backend> model{config, ms::seed{42}};
  const std::vector<int> prompt{1, 2, 3};
  const std::vector<int> text = ms::generate(model, prompt, {.max_new_tokens = 4}).ids();
  ms::save(model, "consumer.safetensors");
  auto loaded = ms::load<mine, backend>("consumer.safetensors");
  const bool same = ms::generate(loaded, prompt, {.max_new_tokens = 4}).ids() == text;

  ms::set_thread_count(2);
#if defined(WITH_OPENMP)
  const int threads = 2;
#else
  const int threads = 1;
#endif
  if (text.size() != 4 || !same || ms::thread_count() != threads) {
    std::printf("generated %zu tokens, %s after loading, on %d threads\n", text.size(), same ? "the same" : "others",
                ms::thread_count());
    return 1;
  }
  std::printf("%d.%d.%d\n", MOESKIP_VERSION_MAJOR, MOESKIP_VERSION_MINOR, MOESKIP_VERSION_PATCH);
} catch (const std::exception& failure) {
  std::printf("%s\n", failure.what());
  return 1;
}
