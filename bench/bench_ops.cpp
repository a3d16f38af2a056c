// The CPU's kernels one by one, Eigen's product beside ours.
#include <Eigen/Core>

#include "moeskip/moeskip.hpp"
#include "rates.hpp"

namespace ms = moeskip;

namespace {

template <class T> ms::buffer<T> filled(ms::index_t size) {
  ms::buffer<T> b(size);
  for (ms::index_t i = 0; i < size; ++i) b[i] = T(float(i * 7 % 13) * 0.1f - 0.6f);
  return b;
}

/// y = x wᵀ for few rows; the weights of 16 matrices in turn, so that they come from memory.
template <class W> void linear_few(benchmark::State& state) {
  using B = ms::cpu<W>;
  const ms::index_t N = state.range(0), I = 1024, O = 2048, copies = 16;
  B b;
  ms::buffer<W> w = filled<W>(copies * O * I);
  ms::buffer<float> x = filled<float>(N * I), y(N * O);
  ms::index_t at = 0;
  bench::time_calls(state, {.bytes = double(O * I) * sizeof(W), .flop = 2.0 * double(N * O * I)}, [&] {
    ms::linear(b, {y.data(), N, O}, {x.data(), N, I}, {w.data() + at++ % copies * O * I, O, I});
  });
}

template <class W, class P = float> void linear_many(benchmark::State& state) {
  using B = ms::cpu<W, ms::isa::native, P>;
  const ms::index_t N = state.range(0), O = state.range(1), I = state.range(2);
  B b;
  ms::buffer<W> w = filled<W>(O * I);
  ms::buffer<float> x = filled<float>(N * I), y(N * O);
  bench::time_calls<P>(state, {.flop = 2.0 * double(N * O * I)}, [&] {
    ms::linear(b, {y.data(), N, O}, {x.data(), N, I}, {w.data(), O, I});
  });
}

/// The same product by Eigen, on the same threads.
void eigen_many(benchmark::State& state) {
  using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const ms::index_t N = state.range(0), O = state.range(1), I = state.range(2);
  ms::buffer<float> w = filled<float>(O * I), x = filled<float>(N * I), y(N * O);
  Eigen::Map<matrix> Y(y.data(), N, O);
  const Eigen::Map<const matrix> X(x.data(), N, I), Wt(w.data(), O, I);
  bench::time_calls(state, {.flop = 2.0 * double(N * O * I)}, [&] { Y.noalias() = X * Wt.transpose(); });
}

/// Eight experts, two a row: forward and backward of the whole stage.
template <class P> void experts_step(benchmark::State& state) {
  using B = ms::cpu<float, ms::isa::native, P>;
  const ms::index_t N = state.range(0), D = state.range(1), F = state.range(2), E = 8, K = 2;
  B b;
  ms::arena memory;
  ms::buffer<float> w = filled<float>(E * 3 * F * D), dw(E * 3 * F * D), h = filled<float>(N * D), y(N * D), dh(N * D);
  ms::routing<float> r{memory.take<float>(N, E), memory.take<int>(N, K), memory.take<float>(N, K),
                       memory.take<float>(E)};
  for (ms::index_t n = 0; n < N; ++n)
    for (ms::index_t k = 0; k < K; ++k) r.chosen(n, k) = int((n * 5 + k * 3) % E), r.gate(n, k) = 0.5f;
  const ms::dispatch plan = ms::plan_dispatch(r.chosen, int(E), 0, memory);
  const ms::mat<float> gate_up = memory.take<float>(plan.size(), 2 * F), dgate = memory.take<float>(N, K);
  const ms::expert_weights<const float> weights{ms::cube<float>(w.data(), E, 2 * F, D),
                                                ms::cube<float>(w.data() + E * 2 * F * D, E, D, F)};
  const ms::expert_weights<float> grads{ms::cube<float>(dw.data(), E, 2 * F, D),
                                        ms::cube<float>(dw.data() + E * 2 * F * D, E, D, F)};
  bench::time_calls<P>(state, {.flop = 3 * 2.0 * double(N * K * 3 * F * D)}, [&] {
    ms::experts(b, {y.data(), N, D}, gate_up, {h.data(), N, D}, {h.data(), N, D}, r, plan, weights, memory);
    ms::experts_backward(b, {dh.data(), N, D}, dgate, grads, {y.data(), N, D}, gate_up, {h.data(), N, D}, r, plan,
                         weights, memory);
  });
}

/// Sixteen sequences of 256 tokens, eight heads of 32 over four groups.
void attention_step(benchmark::State& state) {
  using B = ms::cpu<float>;
  const ms::index_t S = 16, C = state.range(0), N = S * C;
  const ms::attention_shape shape{.heads = 8, .kv_heads = 4, .head_dim = 32, .scale = 0.2f};
  B b;
  ms::arena memory;
  std::vector<int> slot, position;
  for (int n = 0; n < N; ++n) slot.push_back(int(n / C)), position.push_back(int(n % C));
  const ms::token_rows rows{{slot.data(), N}, {position.data(), N}};
  const auto take = [&](ms::index_t size) {
    auto v = memory.take<float>(size);
    for (ms::index_t i = 0; i < size; ++i) v[i] = float(i * 7 % 13) * 0.1f - 0.6f;
    return v.data();
  };
  const ms::kv_layer<float> kv{{take(N * 128), S, C, 128}, {take(N * 128), S, C, 128}};
  const ms::kv_layer<float> dkv{{take(N * 128), S, C, 128}, {take(N * 128), S, C, 128}};
  const ms::mat<float> q{take(N * 256), N, 256}, out{take(N * 256), N, 256}, dq{take(N * 256), N, 256};
  bench::time_calls(state, {.flop = 3 * 2.0 * double(N) * 256 * double(C + 1)}, [&] {
    ms::attend(b, out, q, kv, rows, shape, memory);
    ms::attend_backward(b, dq, dkv, out, q, kv, rows, shape, memory);
  });
}

/// Rows at the end of a text, as decode and verify have them, or each of another text; the caches of enough layers in
/// turn that those of 32 MB do not hold them. Arguments: heads, groups, size of a head, keys, rows, texts.
void attention_few(benchmark::State& state) {
  const int H = int(state.range(0)), G = int(state.range(1)), d = int(state.range(2)), keys = int(state.range(3));
  const int N = int(state.range(4)), texts = int(state.range(5)), C = keys + N / texts;
  const ms::index_t kv_size = ms::index_t(texts) * C * G * d, copies = 1 + (64 << 20) / (8 * kv_size);
  ms::cpu<ms::bf16> b;
  ms::arena memory;
  const ms::attention_shape shape{.heads = H, .kv_heads = G, .head_dim = d, .scale = 0.2f};
  std::vector<int> slot, position;
  for (int n = 0; n < N; ++n) slot.push_back(n * texts / N), position.push_back(keys + n % (N / texts));
  const ms::token_rows rows{{slot.data(), N}, {position.data(), N}};
  ms::buffer<float> all = filled<float>(2 * copies * kv_size), q = filled<float>(N * H * d), out(N * H * d);
  ms::index_t at = 0;
  bench::time_calls(state, {.bytes = 8.0 * double(kv_size), .flop = 4.0 * N * H * d * keys}, [&] {
    float* layer = all.data() + at++ % copies * 2 * kv_size;
    ms::attend(b, {out.data(), N, H * d}, {q.data(), N, H * d},
               {{layer, texts, C, G * d}, {layer + kv_size, texts, C, G * d}}, rows, shape, memory);
  });
}

BENCHMARK(linear_few<ms::bf16>)->Arg(1)->Arg(2)->Arg(4)->Arg(8)->Arg(16)->UseRealTime();
BENCHMARK(linear_few<float>)->Arg(1)->Arg(4)->UseRealTime();
BENCHMARK(linear_many<float>)->Args({4096, 512, 256})->Args({512, 2048, 2048})->Args({64, 512, 256})->UseRealTime();
BENCHMARK(linear_many<ms::bf16>)->Args({4096, 512, 256})->Args({512, 2048, 2048})->UseRealTime();
BENCHMARK(linear_many<float, ms::bf16>)->Args({4096, 512, 256})->Args({512, 2048, 2048})->UseRealTime();
BENCHMARK(linear_many<ms::bf16, ms::bf16>)->Args({4096, 512, 256})->Args({512, 2048, 2048})->UseRealTime();
BENCHMARK(eigen_many)->Args({4096, 512, 256})->Args({512, 2048, 2048})->Args({64, 512, 256})->UseRealTime();
BENCHMARK(experts_step<float>)->Args({4096, 256, 256})->Args({2048, 512, 1024})->UseRealTime();
BENCHMARK(experts_step<ms::bf16>)->Args({4096, 256, 256})->Args({2048, 512, 1024})->UseRealTime();
BENCHMARK(attention_few)
    ->Args({32, 16, 32, 200, 1, 1})
    ->Args({32, 16, 32, 200, 4, 1})
    ->Args({16, 16, 128, 1000, 1, 1})
    ->Args({16, 16, 128, 1000, 4, 1})
    ->Args({16, 16, 128, 1000, 8, 8})
    ->Args({32, 8, 128, 2000, 1, 1})
    ->Args({32, 8, 128, 2000, 4, 1})
    ->UseRealTime();
BENCHMARK(attention_step)->Arg(256)->UseRealTime();

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  return bench::guarded([&] {
    bench::report out(argc, argv);
    bench::run_benchmarks(out, "ops");
    out.line("read", bench::read_of_memory() / 1e9, "GB/s");
    out.line("fma.peak", bench::product_peak() / 1e9, "GFLOP/s");
    out.line("fma.bf16.peak", bench::product_peak<ms::bf16>() / 1e9, "GFLOP/s");
  });
}
