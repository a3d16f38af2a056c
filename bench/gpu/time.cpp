// How fast a GPU is at what models do, beside what its memory allows:
//   gpu_time [--json FILE] [--model FILE --text FILE]
//   read      GB/s of a reduction over 1 GiB                         the floor under decoding
//   product   2048 rows of 2048 numbers to 6144, as a prefill of OLMoE's shape has them: cuBLAS, own tensor cores
//   decode    one token of a model of OLMoE-1B-7B's shape, 512 tokens of context, random bf16 weights; by kernels that
//             the host starts, by graphs of them, and by a kernel that stays on the device
//   verify    2, 4 and 8 tokens at once: against one, and against the bytes that they read
//   prefill   2048 tokens
//   train     12 layers, dim 768, 16 experts top-2 of 512, sequences of 1024
//   skipping  the decoders on a trained model of examples/models, with prompts from a text: their loops by the host, and
//             on the device
// Medians of several runs. Exit status 77: there is no GPU.
#include <cstdio>

#include <map>

#include "../../examples/models/models.hpp"
#include "../decode/speculation.hpp"
#include "moeskip/cuda.hpp"
#include "moeskip/formats/text.hpp"
#include "moeskip/formats/tokenizer/byte.hpp"
#include "moeskip/model/checkpoint.hpp"
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

void line(const std::string& what, double value, const char* unit, std::FILE* json) {
  std::printf("%-44s %12.4g %s\n", what.c_str(), value, unit);
  if (json) std::fprintf(json, "{\"what\": \"%s\", \"value\": %.6g, \"unit\": \"%s\"}\n", what.c_str(), value, unit);
}

double read_rate() {
  ms::cuda<float> b;
  const ms::buffer<float> numbers(ms::index_t{1} << 28);
  const double t = median_time(9, [&] { ms::sum_of_squares(b, numbers.view()); });
  return double(numbers.size()) * sizeof(float) / t;
}

/// The device without cuBLAS.
struct own_kernels : ms::driver::device {
  static bool has_gemm() { return false; }
};

/// A dense product in bf16, with the rounding of its rows.
template <class Driver> void time_product(std::FILE* json) {
  using B = ms::cuda<ms::bf16, Driver>;
  B b;
  constexpr ms::index_t N = 2048, I = 2048, O = 6144;
  ms::arena memory;
  const auto x = memory.take<float>(N, I), y = memory.take<float>(N, O);
  const auto w = memory.take<ms::bf16>(O, I);
  // Not zeros: a card that multiplies zeros needs less power, and its clocks rise.
  const auto some = [](ms::index_t i) { return float(i * 7919 % 1009) / 1009 - 0.5f; };
  for (ms::index_t i = 0; i < x.size(); ++i) x.data()[i] = some(i);
  for (ms::index_t i = 0; i < w.size(); ++i) w.data()[i] = ms::bf16(some(i));
  constexpr int products = 20;
  const double t = median_time(9, [&] {
    for (int i = 0; i < products; ++i) ms::linear(b, y, x, w);
    ms::settle(b);
  });
  const double made = 2.0 * N * I * O * products;
  line(ms::text("product 2048 x 2048 x 6144, ", B::multiplies_by()), made / t / 1e12, "TFLOP/s", json);
}

/// Tokens a second of a decoder whose loop runs on the device.
template <class Session, class Decoder>
double loop_rate(Session& s, std::span<const int> prompt, const Decoder& decoder, int tokens) {
  std::vector<double> rates;
  for (int i = 0; i < 4; ++i) {
    const auto made = ms::generate(s, prompt, {.max_new_tokens = tokens},
                                   ms::decoder::on_device<Decoder>{decoder, tokens}, [](const ms::emitted&) {});
    if (i > 0) rates.push_back(made.stats.tokens_per_second());  // the first has weights go to the device
  }
  return bench::median(rates);
}

/// Driver: kernels one by one, or in graphs.
template <class Driver> void time_decoding(double bytes_per_second, std::FILE* json) {
  using B = ms::cuda<ms::bf16, Driver>;
  const std::string by = ms::text(Driver::name, ": ");
  const ms::config<olmoe> config{.sizes = olmoe_sizes};
  ms::model<olmoe, B> m(config, ms::seed{1});
  ms::session s(m);
  const auto tokens = [](int n) {
    std::vector<int> ids(static_cast<std::size_t>(n));
    for (int i = 0; i < n; ++i) ids[std::size_t(i)] = i * 7919 % olmoe_sizes.vocab;
    return ids;
  };
  const auto context = tokens(513), prompt = tokens(2049);
  const double prefill = median_time(3, [&] { s.prefill(prompt); });
  line(by + "prefill 2048", 2048 / prefill, "tokens/s", json);
  // A step's arithmetic without exits, of which forward is a third.
  line(by + "prefill 2048", ms::training_flops(m, 1, 2048, {}, {}, 0) / 3 / prefill / 1e12, "TFLOP/s", json);
  s.prefill(context);
  // Of one token, and of tokens that visit `distinct` experts, summed over layers.
  const double kv = 2.0 * 512 * olmoe_sizes.dim * olmoe_sizes.layers * sizeof(float);
  const auto bytes = [&](double distinct) {
    double weights = ms::head_weights_read(config.sizes);
    for (int l = 0; l < olmoe_sizes.layers; ++l)
      weights += ms::layer_weights_read(config, l, distinct / olmoe_sizes.layers);
    return weights * sizeof(ms::bf16) + kv;
  };
  double one = 0, bytes_of_one = 0;
  for (const int n : {1, 2, 4, 8}) {
    const auto scope = s.memory().scope();
    const auto x = s.memory().template take<float>(n, olmoe_sizes.dim),
               logits = s.memory().template take<float>(n, olmoe_sizes.vocab);
    const auto ids = tokens(n);
    const auto verify = [&] {
      s.embed(x, {ids.data(), n}, 512);
      s.run(0, m.layers(), x, 512);
      s.logits(logits, x, m.layers());
    };
    const double t = median_time(20, verify);
    s.meter().reset_experts_read();
    verify();
    const double read = bytes(double(s.meter().experts_read()));
    if (n == 1) {
      one = t, bytes_of_one = read;
      line(by + "decode, context 512", 1 / t, "tokens/s", json);
    } else {
      line(ms::text(by, "verify ", n, " against decode"), t / one, "times", json);
      line(ms::text(by, "verify ", n, " over its bytes"), t / one / (read / bytes_of_one), "times", json);
    }
  }
  const double roofline = bytes_per_second / bytes_of_one;
  line(by + "decode: what reading allows", roofline, "tokens/s", json);
  line(by + "decode: share of it", 1 / one / roofline, "", json);
  if constexpr (std::same_as<Driver, ms::driver::device>) {
    const double rate = loop_rate(s, context, ms::decoder::autoregressive{}, 64);
    line("on the device: decode, from context 512", rate, "tokens/s", json);
    line("on the device: decode, share of what reading allows", rate / roofline, "", json);
  }
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
  const double step = median_time(3, [&] { run.step(batches); });
  line("train", 8 * 1024 / step, "tokens/s", json);
  line("train", ms::training_flops(m, 8, 1024, run.exit_weights_now(), {}, 0) / step / 1e12, "TFLOP/s", json);
}

/// A trained model's decoders against plain decoding.
void time_skipping(const std::string& model, const std::string& text, std::FILE* json) {
  auto m = ms::load<models::all_moe, ms::cuda<ms::bf16>>(model);
  const auto prompts = bench::prompts_of(ms::tokenizer::byte::encode(ms::read_text(text)), 8, 64);
  const auto time = [&](const char* what, const auto& decoder) {
    bench::comparison all;
    for (const std::vector<int>& prompt : prompts) bench::compare(all, m, prompt, 150, decoder, 3);
    line(what, all.speedup(), "times plain", json);
    return double(all.sum.layer_steps) / all.sum.tokens;
  };
  time("default decoder", models::all_moe::decoder{});
  using two_tokens = ms::speculative_decoder::compose<ms::draft::self, ms::acceptance::exact, ms::draft_length::fixed>;
  time("self-speculation: exit 2, 2 tokens", two_tokens{{.exit_layer = 2}, {.num_speculations = 2}});
  const ms::decoder::early_exit<> leaves{.rule = {.threshold = 0.9f}};
  const double layers = time("early exit", leaves);
  line("early exit: layers allow", m.layers() / layers, "times plain", json);

  // The same with loops on the device, against plain decoding there.
  ms::session s(m);
  std::vector<double> exits, drafts, rates;
  for (const std::vector<int>& prompt : prompts) {
    const double plain = loop_rate(s, prompt, ms::decoder::autoregressive{}, 150);
    rates.push_back(plain);
    exits.push_back(loop_rate(s, prompt, leaves, 150) / plain);
    drafts.push_back(loop_rate(s, prompt, two_tokens{{.exit_layer = 2}, {.num_speculations = 2}}, 150) / plain);
  }
  line("on the device: plain decoding", bench::median(rates), "tokens/s", json);
  line("on the device: early exit", bench::median(exits), "times plain", json);
  line("on the device: self-speculation: exit 2, 2 tokens", bench::median(drafts), "times plain", json);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const ms::cuda<float> there_is_a_device;
  } catch (const ms::error& e) {
    std::printf("%s\n", e.what());
    return 77;
  }
  std::map<std::string, std::string> options;
  for (int i = 1; i + 1 < argc; i += 2) options[argv[i]] = argv[i + 1];
  return bench::guarded([&] {
    for (const auto& [name, value] : options)
      MOESKIP_CHECK(ms::config_error, name == "--json" || name == "--model" || name == "--text", "unknown option ",
                    name);
    MOESKIP_CHECK(ms::config_error, argc % 2 == 1, argv[argc - 1], ": expected a value behind it");
    MOESKIP_CHECK(ms::config_error, options.contains("--model") == options.contains("--text"),
                  "--model and --text go together");
    std::FILE* json = options.contains("--json") ? std::fopen(options["--json"].c_str(), "a") : nullptr;
    MOESKIP_CHECK(ms::file_error, json || !options.contains("--json"), options["--json"], ": cannot be opened");
    const double rate = read_rate();
    line("read", rate / 1e9, "GB/s", json);
    std::printf("dense products of many rows by %s\n", ms::cuda<ms::bf16>::multiplies_by());
    time_product<ms::driver::device>(json);
    time_product<own_kernels>(json);
    time_decoding<ms::driver::device>(rate, json);
    time_decoding<ms::driver::graph>(rate, json);
    time_training(json);
    if (options.contains("--model")) time_skipping(options["--model"], options["--text"], json);
    if (json) std::fclose(json);
  });
}
