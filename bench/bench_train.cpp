// Training steps of the demo's shape against the peak of multiply-adds that the same program reaches, with products in
// f32 and in bf16.
#include "demo_training.hpp"
#include "limits.hpp"

namespace ms = moeskip;

namespace {

constexpr int steps = 15;

/// Steps of the demo's training, with products of type P.
template <class P> void train_step(bench::report& out, const std::string& type) {
  bench::demo_training<P> t;
  std::vector<double> fractions, peaks, rates, achieved;
  for (int step = -2; step < steps; ++step) {
    const double before = bench::product_peak<P>();
    const double flops = t.flop();
    const double time = bench::time_of([&] { t.step(); });
    const double peak = (before + bench::product_peak<P>()) / 2;
    if (step < 0) continue;  // memory still grows
    peaks.push_back(peak), achieved.push_back(flops / time), fractions.push_back(flops / time / peak);
    rates.push_back(t.data.tokens_per_batch() / time);
  }
  out.line("fma" + type + ".peak", bench::median(peaks) / 1e9, "GFLOP/s", "",
           ms::text("varied by ", int(100 * bench::spread(peaks)), " %"));
  out.line("train" + type + ".flops", bench::median(achieved) / 1e9, "GFLOP/s");
  out.line("train" + type + ".tokens_per_second", bench::median(rates), "tokens/s");
  out.line("train" + type + ".peak_fraction", bench::median(fractions), "ratio", "fma" + type + ".peak");
  if (type.empty()) out.line("train.memory", double(t.trainer.memory().high_water()) / (1 << 20), "MiB");
}

/// The matrix products of a training step, forward and backward, and nothing else: one layer of dim 512, 8 experts
/// top-2 of width 1024, 8 sequences of 256 tokens.
template <class P> void products(bench::report& out, const std::string& type) {
  using B = ms::cpu<float, ms::isa::native, P>;
  constexpr ms::index_t N = 8 * 256, D = 512, F = 1024, E = 8, K = 2, O = 768;
  B b;
  ms::arena memory;
  const auto take = [&](ms::index_t size) {
    const auto v = memory.take<float>(size);
    for (ms::index_t i = 0; i < size; ++i) v[i] = float(i * 7 % 13) * 0.1f - 0.6f;
    return v.data();
  };
  const ms::mat<float> x(take(N * D), N, D), y(take(N * D), N, D), dx(take(N * D), N, D), qkv(take(N * O), N, O);
  const ms::mat<float> in(take(O * D), O, D), d_in(take(O * D), O, D);
  const ms::mat<float> out_w(take(D * D), D, D), d_out(take(D * D), D, D);
  float *w = take(E * 3 * F * D), *dw = take(E * 3 * F * D);
  const ms::expert_weights<const float> weights{ms::cube<float>(w, E, 2 * F, D),
                                                ms::cube<float>(w + E * 2 * F * D, E, D, F)};
  const ms::expert_weights<float> grads{ms::cube<float>(dw, E, 2 * F, D), ms::cube<float>(dw + E * 2 * F * D, E, D, F)};
  ms::routing<float> r{memory.take<float>(N, E), memory.take<int>(N, K), memory.take<float>(N, K),
                       memory.take<float>(E)};
  for (ms::index_t n = 0; n < N; ++n)
    for (ms::index_t k = 0; k < K; ++k) r.chosen(n, k) = int((n * 5 + k * 3) % E), r.gate(n, k) = 0.5f;
  const ms::dispatch plan = ms::plan_dispatch(r.chosen, int(E), 0, memory);
  const ms::mat<float> gate_up = memory.take<float>(plan.size(), 2 * F), dgate = memory.take<float>(N, K);
  const double flops = 3 * 2.0 * double(N) * double(D * (O + D) + K * 3 * F * D);
  std::vector<double> fractions;
  for (int round = -2; round < steps; ++round) {
    const double before = bench::product_peak<P>();
    const double time = bench::time_of([&] {
      ms::linear(b, qkv, x, in), ms::linear(b, y, x, out_w);
      ms::experts(b, y, gate_up, x, x, r, plan, weights, memory);
      ms::experts_backward(b, dx, dgate, grads, y, gate_up, x, r, plan, weights, memory);
      ms::linear_backward(b, dx, d_out, y, x, out_w), ms::linear_backward(b, dx, d_in, qkv, x, in);
    });
    if (round >= 0) fractions.push_back(flops / time / ((before + bench::product_peak<P>()) / 2));
  }
  out.line("train" + type + ".matmul_peak_fraction", bench::median(fractions), "ratio", "fma" + type + ".peak");
}

/// The same step with and without layer dropout: dropped sequences must save their time.
void layer_dropout(bench::report& out) {
  using B = ms::cpu<float>;
  demo::shape shape = demo::full();
  std::vector<int> text(1 << 20);
  for (std::size_t i = 0; i < text.size(); ++i) text[i] = int(i * i / 91 % 256);
  ms::random_windows data(text, shape.sequences, shape.length, ms::seed{2});
  ms::config<demo::variant> with = shape.model, without = shape.model;
  with.layer_dropout.p_max = 0.5f, without.layer_dropout.p_max = 0.f;
  ms::model<demo::variant, B> dropping(with, ms::seed{1}), whole(without, ms::seed{1});
  ms::trainer<demo::variant, B> a(dropping, shape.training), b(whole, shape.training);
  std::vector<double> times, flops;
  for (int pair = -1; pair < 7; ++pair) {
    const auto cost = [&](auto& m, auto& t) {
      return ms::training_flops(m, shape.sequences, shape.length, t.exit_weights_now(), t.options().masks,
                                t.next_step());
    };
    const double work = cost(dropping, a) / cost(whole, b);
    const double time = bench::time_of([&] { a.step(data); }) / bench::time_of([&] { b.step(data); });
    if (pair >= 0) times.push_back(time), flops.push_back(work);
  }
  out.line("train.layer_dropout_0.5.time", bench::median(times), "ratio", "no layer dropout");
  out.line("train.layer_dropout_0.5.flops", bench::median(flops), "ratio", "no layer dropout");
}

}  // namespace

int main(int argc, char** argv) {
  return bench::guarded([&] {
    bench::report out(argc, argv);
    train_step<float>(out, "");
    products<float>(out, "");
    train_step<ms::bf16>(out, ".bf16");
    products<ms::bf16>(out, ".bf16");
    layer_dropout(out);
  });
}
