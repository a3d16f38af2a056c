// Whole models, call by call and step by step, by what must be read and computed. How they compare is the business of
// decode/, compare/ and bench_train.cpp, which run what they compare in turn.
#include "decode/shapes.hpp"
#include "demo_training.hpp"
#include "moeskip/eval/counted_session.hpp"
#include "rates.hpp"

namespace ms = moeskip;

namespace {

using bench::weights_in_bf16;

template <class V> ms::config<V> shape_of();
template <> ms::config<bench::in_cache> shape_of() { return bench::in_cache_shape; }
template <> ms::config<bench::in_memory> shape_of() { return bench::in_memory_shape; }

template <class V> ms::model<V, weights_in_bf16>& model_of() {
  static ms::model<V, weights_in_bf16> m(shape_of<V>(), ms::seed{1});
  return m;
}
template <class V> std::vector<int> prompt_of(int length) {
  std::vector<int> prompt;
  for (int i = 0; i < length; ++i) prompt.push_back(i * 37 % model_of<V>().sizes().vocab);
  return prompt;
}

/// All layers and the logits of N rows behind 64 tokens: a token of plain decoding, or a verify.
template <class V> void call_of_rows(benchmark::State& state) {
  auto& m = model_of<V>();
  const int N = int(state.range(0)), at = 63;
  ms::counted_session<V, weights_in_bf16> counted(m);
  ms::session<V, weights_in_bf16> timed(m);
  const std::vector<int> prompt = prompt_of<V>(at + 1), next(prompt.end() - N, prompt.end());
  const auto call = [&](auto& s) {
    const auto scope = s.memory().scope();
    const ms::mat<float> x = s.memory().template take<float>(N, m.sizes().dim);
    const ms::mat<float> logits = s.memory().template take<float>(N, m.sizes().vocab);
    s.embed(x, {next.data(), N}, at);
    s.run(0, m.layers(), x, at);
    s.logits(logits, x, m.layers());
  };
  counted.session().prefill(prompt), timed.prefill(prompt);
  call(counted.session());
  bench::time_calls<ms::bf16>(state, {counted.bytes(), counted.done.total().flop()}, [&] { call(timed); });
}

/// 32 tokens. Bytes and FLOP are counted in another run: only for decoders that do the same in every one.
template <class V, class Decoder> void decode(benchmark::State& state, const Decoder& decoder, bool counts = true) {
  auto& m = model_of<V>();
  constexpr int tokens = 32;
  const std::vector<int> prompt = prompt_of<V>(1);  // so there is no prompt to run
  const auto run = [&](auto& s) {
    ms::generate(s, prompt, {.max_new_tokens = tokens}, decoder, [](const ms::emitted&) {});
  };
  bench::work each;
  if (counts) {
    ms::counted_session<V, weights_in_bf16> counted(m);
    run(counted.session());
    each = {counted.bytes(), counted.done.total().flop()};
  }
  ms::session<V, weights_in_bf16> timed(m);
  run(timed);
  bench::time_calls<ms::bf16>(state, each, [&] { run(timed); });
  state.SetItemsProcessed(state.iterations() * tokens);
}
template <class V> void decode_plainly(benchmark::State& state) { decode<V>(state, ms::decoder::autoregressive{}); }
template <class V> void decode_to_half_depth(benchmark::State& state) {
  decode<V>(state, ms::decoder::early_exit<ms::exit_rule::fixed>{.rule = {.exit_layer = model_of<V>().layers() / 2}});
}
/// Chooses by what it measures, and goes on learning.
template <class V> void decode_by_default(benchmark::State& state) { decode<V>(state, typename V::decoder{}, false); }

/// A step of the demo's training, products of type P.
template <class P> void training_step(benchmark::State& state) {
  bench::demo_training<P> t;
  const double flop = t.flop();  // of the first step, which stands for all
  t.step();                      // memory grows
  bench::time_calls<P>(state, {.flop = flop}, [&] { t.step(); });
}

BENCHMARK(call_of_rows<bench::in_cache>)->Arg(1)->Arg(2)->Arg(4)->Arg(8)->UseRealTime();
BENCHMARK(call_of_rows<bench::in_memory>)->Arg(1)->Arg(2)->Arg(4)->Arg(8)->UseRealTime();
BENCHMARK(decode_plainly<bench::in_cache>)->UseRealTime();
BENCHMARK(decode_by_default<bench::in_cache>)->UseRealTime();
BENCHMARK(decode_to_half_depth<bench::in_cache>)->UseRealTime();
BENCHMARK(decode_plainly<bench::in_memory>)->UseRealTime();
BENCHMARK(decode_to_half_depth<bench::in_memory>)->UseRealTime();
BENCHMARK(training_step<float>)->UseRealTime();
BENCHMARK(training_step<ms::bf16>)->UseRealTime();

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  return bench::guarded([&] {
    bench::report out(argc, argv);
    bench::run_benchmarks(out, "model");
  });
}
