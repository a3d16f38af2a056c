// Training steps of the demo's shape against the peak of f32 multiply-adds that the same program reaches.
#include "../examples/demo/shape.hpp"

#include "limits.hpp"

namespace ms = moeskip;

namespace {

constexpr int steps = 15;

void train_step(bench::report& out) {
  using B = ms::cpu<float>;
  const demo::shape shape = demo::full();
  ms::model<demo::variant, B> m(shape.model, ms::seed{1});
  ms::trainer<demo::variant, B> trainer(m, shape.training);
  std::vector<int> text(1 << 20);
  for (std::size_t i = 0; i < text.size(); ++i) text[i] = int(i * i / 91 % 256);
  ms::random_windows data(text, shape.sequences, shape.length, ms::seed{2});

  std::vector<double> fractions, peaks, rates, achieved;
  for (int step = -2; step < steps; ++step) {
    const double before = bench::fma_peak();
    const double flops = ms::training_flops(m, shape.sequences, shape.length, trainer.exit_weights_now(),
                                            trainer.options().masks, trainer.next_step());
    const double time = bench::time_of([&] { trainer.step(data); });
    const double peak = (before + bench::fma_peak()) / 2;
    if (step < 0) continue;  // memory still grows
    peaks.push_back(peak), achieved.push_back(flops / time), fractions.push_back(flops / time / peak);
    rates.push_back(data.tokens_per_batch() / time);
  }
  out.line("fma.peak", bench::median(peaks) / 1e9, "GFLOP/s", "",
           ms::text("varied by ", int(100 * bench::spread(peaks)), " %"));
  out.line("train.flops", bench::median(achieved) / 1e9, "GFLOP/s");
  out.line("train.tokens_per_second", bench::median(rates), "tokens/s");
  out.line("train.peak_fraction", bench::median(fractions), "ratio", "fma.peak");
  out.line("train.memory", double(trainer.memory().high_water()) / (1 << 20), "MiB");
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
    train_step(out);
    layer_dropout(out);
  });
}
