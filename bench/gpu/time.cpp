// How fast a GPU is at what models do, beside what its memory and its products allow:
//   gpu_time PART... [--model FILE --text FILE]
//   limits     what a kernel that only reads reads, and bf16 products of 8192³ by cuBLAS
//   laws       distributions of the next token, 50304 ids
//   loops      a decoder's loop on the device, OLMoE-1B-7B, context 512
//   kernels    calls of 1, 2, 4 and 8 tokens of it, kernels asked for one by one     graphs    and as CUDA graphs
//   prefill    2048 tokens of it, and a product of such a prompt: cuBLAS, own tensor cores
//   train      12 layers, dim 768, 16 experts top-2 of 512, sequences of 1024
//   skip       decoders of a trained model of examples/models, with prompts from a text
// Medians. Exit status 1: something failed, which a line says; 77: there is no GPU.
#include <map>

#include "lines.hpp"
#include "olmoe.hpp"
#include "read_rate.hpp"
#include "skip.hpp"

namespace ms = moeskip;
using bench::line;

namespace {

using ms::driver::device;

/// What decoding is compared with, bytes a second.
double time_reading() {
  const double rate = bench::read_rate();
  line("read", rate / 1e9, "GB/s");
  return rate;
}

void time_cublas() {
  const ms::cuda<ms::bf16> b;
  if (!device::has_gemm()) return bench::failed("cuBLAS bf16 8192 x 8192 x 8192", "compiled without cuBLAS");
  constexpr ms::index_t n = 8192, products = 4;
  ms::buffer<ms::bf16> left(n * n), right(n * n);
  ms::buffer<float> out(n * n);
  for (ms::index_t i = 0; i < n * n; ++i) left[i] = ms::bf16(bench::some(i)), right[i] = ms::bf16(bench::some(i + 500));
  const ms::gemm_call call{.a = {left.data(), n, true},
                           .b = {right.data(), n, false},
                           .c = out.data(),
                           .m = n,
                           .n = n,
                           .k = n,
                           .in_bf16 = true};
  const double t = bench::median_time(9, [&] {
    for (ms::index_t i = 0; i < products; ++i) device::gemm(call);
    ms::settle(b);
  });
  line("cuBLAS bf16 8192 x 8192 x 8192", 2.0 * n * n * n * products / t / 1e12, "TFLOP/s");
}

/// The device without cuBLAS.
struct own_kernels : device {
  static bool has_gemm() { return false; }
};

/// A dense product in bf16, with the rounding of its rows.
template <class Driver> void time_product() {
  using B = ms::cuda<ms::bf16, Driver>;
  B b;
  constexpr ms::index_t N = 2048, I = 2048, O = 6144;
  ms::arena memory;
  const auto x = memory.take<float>(N, I), y = memory.take<float>(N, O);
  const auto w = memory.take<ms::bf16>(O, I);
  for (ms::index_t i = 0; i < x.size(); ++i) x.data()[i] = bench::some(i);
  for (ms::index_t i = 0; i < w.size(); ++i) w.data()[i] = ms::bf16(bench::some(i));
  constexpr int products = 20;
  const double t = bench::median_time(9, [&] {
    for (int i = 0; i < products; ++i) ms::linear(b, y, x, w);
    ms::settle(b);
  });
  line(ms::text("product 2048 x 2048 x 6144 of float rows, ", B::multiplies_by()),
       2.0 * N * I * O * products / t / 1e12, "TFLOP/s");
}

void time_laws() {
  ms::cuda<float> b;
  ms::arena memory;
  constexpr ms::index_t V = 50304, most = 4;
  const auto logits = memory.take<float>(most, V);
  const auto laws = memory.take<ms::token_law<float>>(most);
  const ms::draws draw{ms::seed{1}, ms::stream::user};
  for (ms::index_t i = 0; i < logits.size(); ++i) logits.data()[i] = 3 * draw.normal(std::uint64_t(i));
  const auto time = [&](const char* what, const ms::sampling& by, ms::index_t rows, bool for_rules) {
    constexpr int calls = 100;  // waited for together: a call is shorter than a wait
    const double t = bench::median_time(9, [&] {
      for (int i = 0; i < calls; ++i) ms::token_laws(b, {laws.data(), rows}, {logits.data(), rows, V}, by, for_rules);
      ms::settle(b);
    });
    line(ms::text("law of a token, ", what), t / calls * 1e6, "us");
  };
  time("greedy", {}, 1, false);
  time("greedy, with what exit rules ask for", {}, 1, true);
  time("temperature 1", {.temperature = 1}, 1, false);
  time("top-k 50", {.temperature = 1, .top_k = 50}, 1, false);
  time("top-p 0.9", {.temperature = 1, .top_p = 0.9f}, 1, false);
  time("top-k 50 and top-p 0.9", {.temperature = 1, .top_k = 50, .top_p = 0.9f}, 1, false);
  time("top-p 0.9, 4 rows", {.temperature = 1, .top_p = 0.9f}, most, false);
}

/// What a step of a loop costs in which next to nothing is done: that all blocks wait for each other. A layer of a
/// decoding step has five (docs/adr/0018-five-phases-a-layer.md).
void time_steps() {
  using B = ms::cuda<ms::bf16>;
  B b;
  ms::arena memory;
  const auto x = memory.take_zeroed<float>(1), y = memory.take_zeroed<float>(1);
  const auto time = [&](int steps) {
    B::loop<ms::router::top_k<8>, ms::exit_rule::fixed> loop;
    {
      const auto open = loop.write();
      for (int i = 0; i < steps; ++i) ms::accumulate(b, x, y);
    }
    return bench::median_time(9, [&] { loop.run(), ms::settle(b); });
  };
  constexpr int few = 100, many = 1100;
  line("loop: a step that does nothing", (time(many) - time(few)) / (many - few) * 1e6, "us");
}

struct trained : ms::variant {};

void time_training() {
  using B = ms::cuda<ms::bf16>;
  const ms::config<trained> config{
      .sizes = {.layers = 12, .dim = 768, .heads = 12, .ffn = 512, .experts = 16, .vocab = 50304, .context = 1024}};
  ms::model<trained, B> m(config, ms::seed{1});
  ms::trainer run(m, ms::training<trained>{.exit_scale = 0});
  const std::vector<int> text = bench::some_ids(1 << 16, config.sizes.vocab);
  ms::random_windows batches(text, 8, 1024, ms::seed{1});
  const double before = double(run.step(batches).losses.total);
  const double step = bench::median_time(7, [&] { run.step(batches); });
  const double after = double(run.step(batches).losses.total);
  MOESKIP_CHECK(ms::error, after < before, "the loss does not fall: ", before, ", and after some steps ", after);
  line("train", 8 * 1024 / step, "tokens/s");
  line("train, rate", ms::training_flops(m, 8, 1024, run.exit_weights_now(), {}, 0) / step / 1e12, "TFLOP/s");
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const ms::cuda<float> there_is_a_device;
  } catch (const ms::error& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 77;
  }
  const int failed = bench::guarded([&] {
    constexpr const char* known[] = {"limits", "laws", "loops", "kernels", "graphs", "prefill", "train", "skip"};
    std::map<std::string, std::string> options;
    std::map<std::string, bool> asked;
    for (int i = 1; i < argc; ++i) {
      const std::string word = argv[i];
      if (word == "--model" || word == "--text") {
        MOESKIP_CHECK(ms::config_error, i + 1 < argc, word, ": expected a file behind it");
        options[word] = argv[++i];
      } else {
        MOESKIP_CHECK(ms::config_error, std::ranges::find(known, word) != std::end(known), "unknown part ", word,
                      ": expected limits, laws, loops, kernels, graphs, prefill, train or skip");
        asked[word] = true;
      }
    }
    MOESKIP_CHECK(ms::config_error, !asked.empty(), "what is to be timed? See the head of bench/gpu/time.cpp");
    MOESKIP_CHECK(ms::config_error, !asked["skip"] || options.size() == 2, "skip: expected --model and --text");

    double rate = 0;
    if (asked["limits"] || asked["loops"] || asked["kernels"] || asked["graphs"])
      bench::attempt("read", [&] { rate = time_reading(); });
    if (asked["limits"]) bench::attempt("cuBLAS bf16 8192 x 8192 x 8192", time_cublas);
    if (asked["laws"]) bench::attempt("law of a token", time_laws);
    if (asked["loops"]) bench::attempt("loop: a step that does nothing", time_steps);
    if (asked["loops"] || asked["kernels"])
      bench::attempt("OLMoE", [&] {
        bench::olmoe_on<device> o;
        if (asked["loops"]) bench::attempt("loop: decode, context 512", [&] { bench::time_loops(o, rate); });
        if (asked["kernels"])
          bench::attempt("kernels: decode, context 512", [&] { bench::time_calls("kernels", o, rate); });
      });
    if (asked["graphs"])
      bench::attempt("graphs: decode, context 512", [&] {
        bench::olmoe_on<ms::driver::graph> o;
        bench::time_calls("graphs", o, rate);
      });
    if (asked["prefill"]) {
      bench::attempt("product 2048 x 2048 x 6144 of float rows", [] {
        time_product<device>();
        time_product<own_kernels>();
      });
      bench::attempt("prefill 2048", bench::time_prefill);
    }
    if (asked["train"]) bench::attempt("train", time_training);
    if (asked["skip"])
      bench::attempt("decoders of the trained model",
                     [&] { bench::time_skipping(options["--model"], options["--text"]); });
  });
  return failed || bench::failures > 0;
}
