// What must hold on a GPU before anything is timed: every op against plain loops in double, rows that keep their bits,
// the tokens of every decoder, by the host and on the device, and training steps against the CPU's.
//   gpu_check [ops]        ops, or small: every op and a tiny whole model, for compute-sanitizer
// Exit status 0: all of it held; 1: something did not; 77: there is no GPU, which it says in one sentence.
#include <bit>
#include <cstdio>
#include <string_view>

#include "models.hpp"
#include "text_cases.hpp"

using namespace tests;

namespace {

int failures = 0;
std::uint64_t seeds = 5;  // of each op's random data

void expect(bool holds, const std::string& what) {
  std::printf("%s %s\n", holds ? "ok    " : "FAILED", what.c_str());
  failures += !holds;
}

template <class B, class Case> void check_op(const Case& c, const std::string& what, double limit) {
  double most = 0;
  for (std::uint64_t seed = 1; seed <= seeds; ++seed)
    most = std::max(most, difference(run<ms::reference<double>>(c, seed), run<B>(c, seed)));
  expect(most < limit, ms::text(what, ", ", B::name(), ": within ", most, " of double"));
}

/// The list is the one that tests/cuda/test_cuda_barriers.cpp sees to meet every phase.
template <class B> void check_ops() {
  constexpr bool rounds = std::same_as<typename B::product, ms::bf16>;
  each_gpu_case([](const auto& c, const std::string& what, const limits& l) {
    if (const double limit = rounds ? l.tensor_cores : l.sums; limit > 0) check_op<B>(c, what, limit);
  });
}

/// The device as it is where there is no cuBLAS.
struct own_kernels : ms::driver::device {
  static constexpr const char* name = "cuda_own_kernels";
  static bool has_gemm() { return false; }
};

/// Dense products of many rows, which have two ways to be made: by cuBLAS, if it is there, and by own kernels.
template <class Driver> void check_products() {
  const auto check = [](const auto& c, const std::string& what) {
    check_op<ms::cuda<float, Driver>>(c, what, 3e-5);
    check_op<ms::cuda<ms::bf16, Driver, float>>(c, what, 3e-5);
    check_op<ms::cuda<ms::bf16, Driver>>(c, what, 0.1);
  };
  std::printf("dense products of many rows by %s\n", ms::cuda<ms::bf16, Driver>::multiplies_by());
  check(linear_case{true}, "linear"), check(norm_case{true}, "norm_linear");
  // Products of bf16's numbers are exact and sums are f32, so the emulator, which rounds each sum to nearest, stays
  // under 3e-6. Tensor cores are reported to cut sums off instead: errors all have one sign and add up, which a
  // simulation of 280 products puts at 2e-6 to 3.7e-6. A wrong number would be off by far more than the limit.
  constexpr double cut_off = 2e-5;
  check_op<ms::cuda<ms::bf16, Driver>>(rounded_case{}, "numbers of bf16", cut_off);
  check_op<ms::cuda<float, Driver, ms::bf16>>(rounded_case{}, "numbers of bf16", cut_off);
}

/// Rows of a call and the same rows alone, through a whole model.
void check_rows() {
  auto m = lively_model<everything, ms::cuda<ms::bf16>>();
  ms::session together(m), alone(m);
  const std::vector<int> tokens = random_tokens(8, tiny_sizes.vocab, 3), prompt = {1, 2, 3};
  bool same = true;
  for (auto* s : {&together, &alone}) s->prefill(prompt);
  for (int N = 1; N <= 8; ++N) {
    const auto x = together.memory().take<float>(N, tiny_sizes.dim), y = alone.memory().take<float>(1, tiny_sizes.dim);
    together.embed(x, {tokens.data(), N}, 2);
    together.run(0, m.layers(), x, 2);
    for (int n = 0; n < N; ++n) {
      alone.embed(y, tokens[std::size_t(n)], 2 + n);
      alone.run(0, m.layers(), y, 2 + n);
      for (int i = 0; i < tiny_sizes.dim; ++i) same &= std::bit_cast<int>(x(n, i)) == std::bit_cast<int>(y(0, i));
    }
  }
  expect(same, "rows keep their bits in calls of 1 to 8");
}

template <class B> void check_tokens() {
  auto on_cpu = lively_model<plain, ms::cpu<ms::weight_t<B>>>();
  auto on_gpu = lively_model<plain, B>();
  ms::session a(on_cpu);
  ms::session b(on_gpu);
  int same = 0, lossless = 0;
  constexpr int prompts = 20;
  for (std::uint64_t p = 0; p < prompts; ++p) {
    const std::vector<int> prompt = random_tokens(int(p % 5) + 2, tiny_sizes.vocab, p);
    const auto ids = [&](auto& s, const auto& decoder) {
      return ms::generate(s, prompt, {.max_new_tokens = 16}, decoder, [](const ms::emitted&) {}).ids();
    };
    const auto whole = ids(b, ms::decoder::autoregressive{});
    same += whole == ids(a, ms::decoder::autoregressive{});
    lossless += whole == ids(b, fixed_length{{.exit_layer = 2}, {.num_speculations = 4}});
  }
  expect(lossless == prompts, ms::text("speculation changes no token, ", B::name()));
  // Sums differ in their last bits, so a text may part where two tokens are as good as equal.
  expect(same >= prompts - 2, ms::text("the CPU's tokens for ", same, " of ", prompts, " prompts, ", B::name()));
}

/// Loops on the device beside the host's, which asks for the same phases one by one.
template <class W> void check_loops() {
  using B = ms::cuda<W>;
  auto m = lively_model<plain, B>();
  ms::session s(m);
  constexpr int prompts = 20;
  const auto check = [&](const auto& decoder, float temperature) {
    int same = 0;
    for (std::uint64_t p = 0; p < prompts; ++p) {
      const std::vector<int> prompt = random_tokens(int(p % 5) + 2, tiny_sizes.vocab, p);
      const auto ids = [&](const auto& d) {
        const ms::generation options{.max_new_tokens = 16, .sampling = {.temperature = temperature, .top_p = 0.9f}};
        return ms::generate(s, prompt, options, d, [](const ms::emitted&) {}).ids();
      };
      same += ids(decoder) == ids(ms::decoder::on_device<std::decay_t<decltype(decoder)>>{decoder});
    }
    // Another number of threads adds up a law in another order, so a sampled token may be its neighbour, and an exit at
    // its threshold another one.
    const bool by_laws = temperature > 0 || decoder.name == ms::decoder::early_exit<>::name;
    expect(same >= (by_laws ? prompts - 2 : prompts),
           ms::text("a loop on the device: the host's tokens for ", same, " of ", prompts, " prompts, ", decoder.name,
                    temperature > 0 ? ", sampled, " : ", ", B::name()));
  };
  for (const float temperature : {0.f, 1.5f}) {
    check(ms::decoder::autoregressive{}, temperature);
    check(ms::decoder::early_exit<>{.rule = {.threshold = 0.3f}}, temperature);
    check(fixed_length{{.exit_layer = 2}, {.num_speculations = 4}}, temperature);
  }
}

/// A few tokens of each decoder, by the host and by a loop on the device, and a step of training: as little as makes a
/// whole model work, since compute-sanitizer looks at every access to memory.
template <class W> void check_small_model() {
  using B = ms::cuda<W>;
  {
    auto m = lively_model<plain, B>();
    ms::session s(m);
    const std::vector<int> prompt = {1, 2, 3};
    const auto check = [&](const auto& decoder) {
      const auto ids = [&](const auto& d) {
        // A round of two drafts, and no less: what makes no whole round is left to the host.
        return ms::generate(s, prompt, {.max_new_tokens = 3}, d, [](const ms::emitted&) {}).ids();
      };
      expect(ids(decoder) == ids(ms::decoder::on_device<std::decay_t<decltype(decoder)>>{decoder}),
             ms::text("three tokens of a loop on the device, ", decoder.name, ", ", B::name()));
    };
    check(ms::decoder::autoregressive{});
    check(ms::decoder::early_exit<>{.rule = {.threshold = 0.3f}});
    check(fixed_length{{.exit_layer = 2}, {.num_speculations = 2}});
  }
  using trains = ms::cuda<float, ms::driver::device, W>;
  const float apart = training_difference<everything, trains>(ms::adamw{.lr = 1e-3}, 1);
  // In bf16 factors of backward's products are rounded.
  expect(apart < (std::same_as<W, float> ? 1e-4f : 0.05f),
         ms::text("a training step with every policy on, ", trains::name(), ": within ", apart, " of the CPU's"));
}

void check_training() {
  using B = ms::cuda<float>;
  const float all = training_difference<everything, B>(ms::adamw{.lr = 1e-3}, 10);
  expect(all < 1e-4f, ms::text("ten AdamW steps with every policy on: within ", all, " of the CPU's"));
  using by_graphs = ms::cuda<float, ms::driver::graph>;
  const float graphs =
      training_difference<dropping<ms::expert_dropout::bernoulli>, by_graphs>(ms::adamw{.lr = 1e-3}, 3);
  expect(graphs < 1e-4f, ms::text("three steps as CUDA graphs: within ", graphs, " of the CPU's"));
  const float rounded = gradient_difference<everything, ms::cuda<ms::bf16>>();
  expect(rounded < 0.02f, ms::text("a gradient with weights and products in bf16: within ", rounded, " of the CPU's"));
  const float users = training_difference<mine, B>(ms::adamw{.lr = 1e-3}, 3);
  expect(users < 1e-4f, ms::text("three steps with a user's router and mask: within ", users, " of the CPU's"));
  using namespace ms::expert_dropout;
  const float experts = training_difference<dropping<bernoulli>, B>(ms::adamw{.lr = 1e-3}, 3);
  expect(experts < 1e-4f, ms::text("three steps that drop experts: within ", experts, " of the CPU's"));
  const float outputs = training_difference<dropping<output>, B>(ms::adamw{.lr = 1e-3}, 3);
  expect(outputs < 1e-4f, ms::text("three steps that drop outputs: within ", outputs, " of the CPU's"));
  const float muon = training_difference<plain, B>(ms::muon{.lr = 1e-3}, 10);
  expect(muon < 1e-4f, ms::text("ten Muon steps: within ", muon, " of the CPU's"));
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const ms::cuda<float> there_is_a_device;
  } catch (const ms::error& e) {
    std::printf("%s\n", e.what());
    return 77;
  }
  const std::string_view choice = argc > 1 ? argv[1] : "";
  const bool small = choice == "ops" || choice == "small";
  if (small) seeds = 2;  // sanitizers take their time, and look at where numbers go, not at which they are
  using ms::driver::device;
  check_ops<ms::cuda<float>>();
  check_ops<ms::cuda<ms::bf16, device, float>>();
  check_ops<ms::cuda<ms::bf16>>();
  check_products<device>();
  check_products<ms::driver::graph>();
  check_products<own_kernels>();
  check_small_model<float>();
  check_small_model<ms::bf16>();
  if (small) return failures != 0;
  check_rows();
  check_tokens<ms::cuda<float>>();
  check_tokens<ms::cuda<ms::bf16>>();
  check_tokens<ms::cuda<ms::bf16, ms::driver::graph>>();
  check_loops<float>();
  check_loops<ms::bf16>();
  check_training();
  return failures != 0;
}
