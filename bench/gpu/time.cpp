// How fast a GPU is at what models do, beside what its memory allows:     gpu_time [--json FILE]
//   read      GB/s of a reduction over 1 GiB                         the floor under decoding
//   decode    one token of a model of OLMoE-1B-7B's shape, 512 tokens of context, random bf16 weights
//   verify    2, 4 and 8 tokens at once, against one
//   prefill   2048 tokens
//   train     12 layers, dim 768, 16 experts top-2 of 512, sequences of 1024: tokens/s
// Medians of several runs. Exit status 77: there is no GPU.
#include <cstdio>

#include "../measure.hpp"
#include "moeskip/moeskip.hpp"

#include "moeskip/cuda.hpp"
#include "moeskip/model/weights_read.hpp"

namespace ms = moeskip;

namespace {

struct olmoe : ms::variant {
  using router = ms::router::top_k<8>;
};
struct trained : ms::variant {};

constexpr ms::sizes olmoe_sizes{
    .layers = 16, .dim = 2048, .heads = 16, .ffn = 1024, .experts = 64, .vocab = 50304, .context = 4096};

template <class Work> double median_time(int runs, Work&& work) {
  work();  // pages go to the device, clocks rise
  std::vector<double> times;
  for (int i = 0; i < runs; ++i) times.push_back(bench::time_of(work));
  return bench::median(times);
}

void line(const char* what, double value, const char* unit, std::FILE* json) {
  std::printf("%-28s %12.4g %s\n", what, value, unit);
  if (json) std::fprintf(json, "{\"what\": \"%s\", \"value\": %.6g, \"unit\": \"%s\"}\n", what, value, unit);
}

double read_rate() {
  ms::cuda<float> b;
  const ms::buffer<float> numbers(ms::index_t{1} << 28);
  const double t = median_time(9, [&] { ms::sum_of_squares(b, numbers.view()); });
  return double(numbers.size()) * sizeof(float) / t;
}

void time_decoding(double bytes_per_second, std::FILE* json) {
  using B = ms::cuda<ms::bf16>;
  const ms::config<olmoe> config{.sizes = olmoe_sizes};
  ms::model<olmoe, B> m(config, ms::seed{1});
  ms::session s(m);
  const auto tokens = [](int n) {
    std::vector<int> ids(static_cast<std::size_t>(n));
    for (int i = 0; i < n; ++i) ids[std::size_t(i)] = i * 7919 % olmoe_sizes.vocab;
    return ids;
  };
  const auto context = tokens(513), prompt = tokens(2049);
  line("prefill 2048", 2048 / median_time(3, [&] { s.prefill(prompt); }), "tokens/s", json);
  s.prefill(context);
  double one = 0;
  for (const int n : {1, 2, 4, 8}) {
    const auto scope = s.memory().scope();
    const auto x = s.memory().take<float>(n, olmoe_sizes.dim), logits = s.memory().take<float>(n, olmoe_sizes.vocab);
    const auto ids = tokens(n);
    const double t = median_time(20, [&] {
      s.embed(x, {ids.data(), n}, 512);
      s.run(0, m.layers(), x, 512);
      s.logits(logits, x, m.layers());
    });
    if (n == 1) one = t, line("decode, context 512", 1 / t, "tokens/s", json);
    else line(ms::text("verify ", n, " against decode").c_str(), t / one, "times", json);
  }
  double weights = ms::head_weights_read(config.sizes);
  for (int l = 0; l < olmoe_sizes.layers; ++l) weights += ms::layer_weights_read(config, l, 8);
  const double kv = 2.0 * 512 * olmoe_sizes.dim * olmoe_sizes.layers * sizeof(float);
  const double roofline = bytes_per_second / (weights * sizeof(ms::bf16) + kv);
  line("decode: what reading allows", roofline, "tokens/s", json);
  line("decode: share of it", 1 / one / roofline, "", json);
}

void time_training(std::FILE* json) {
  using B = ms::cuda<ms::bf16>;
  const ms::config<trained> config{
      .sizes = {.layers = 12, .dim = 768, .heads = 12, .ffn = 512, .experts = 16, .vocab = 50304, .context = 1024}};
  ms::model<trained, B> m(config, ms::seed{1});
  ms::trainer run(m, ms::training<trained>{.exit_scale = 0});
  std::vector<int> text(std::size_t{1} << 16);
  for (std::size_t i = 0; i < text.size(); ++i) text[i] = int(i * 7919 % 50304);
  ms::random_windows batches(text, 8, 1024, ms::seed{1});
  line("train", 8 * 1024 / median_time(3, [&] { run.step(batches); }), "tokens/s", json);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const ms::cuda<float> there_is_a_device;
  } catch (const ms::error& e) {
    std::printf("%s\n", e.what());
    return 77;
  }
  std::FILE* json = argc > 2 ? std::fopen(argv[2], "a") : nullptr;
  const double rate = read_rate();
  line("read", rate / 1e9, "GB/s", json);
  time_decoding(rate, json);
  time_training(json);
  if (json) std::fclose(json);
}
