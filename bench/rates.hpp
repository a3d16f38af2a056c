// Calls timed by Google Benchmark: the bytes that they must read and the floating-point operations that they do as
// rates, and as shares of what the same program reads and multiplies beside them; the table, and each rate as a line of
// our own JSON.
#pragma once

#include <benchmark/benchmark.h>

#include "limits.hpp"

namespace bench {

/// Of a call. 0: not worth telling.
struct work {
  double bytes = 0, flop = 0;
};

/// Bytes a second of a read of more than the caches hold.
inline double read_of_memory() {
  static const moeskip::buffer<float> block(moeskip::index_t{64} << 20);
  const std::size_t bytes = std::size_t(block.size()) * sizeof(float);
  return double(bytes) / time_of([&] { stream_read(reinterpret_cast<const std::byte*>(block.data()), bytes); });
}

/// Runs the benchmark's loop over `call`, whose products have factors of type P. The limits are measured before and
/// after it.
///   of_read   bytes a second over the streaming read: above 1 where the caches give some of them
///   of_peak   FLOP a second over the peak of multiply-adds
template <class P = float, class Call> void time_calls(benchmark::State& state, const work& each, Call&& call) {
  const auto rate = [](double amount) {
    return benchmark::Counter(amount, benchmark::Counter::kIsIterationInvariantRate, benchmark::Counter::OneK::kIs1000);
  };
  const double read_before = each.bytes > 0 ? read_of_memory() : 0, peak_before = each.flop > 0 ? product_peak<P>() : 0;
  const double start = seconds();
  for (auto _ : state) {
    call();
    benchmark::ClobberMemory();
  }
  const double calls_a_second = double(state.iterations()) / (seconds() - start);
  if (each.bytes > 0) {
    state.counters["bytes"] = rate(each.bytes);
    state.counters["of_read"] = each.bytes * calls_a_second * 2 / (read_before + read_of_memory());
  }
  if (each.flop > 0) {
    state.counters["flop"] = rate(each.flop);
    state.counters["of_peak"] = each.flop * calls_a_second * 2 / (peak_before + product_peak<P>());
  }
}

/// Runs what was registered. Lines are called PREFIX.BENCHMARK.COUNTER.
inline void run_benchmarks(report& out, const std::string& prefix) {
  class lines : public benchmark::ConsoleReporter {
   public:
    lines(report& to, const std::string& name) : out_(to), prefix_(name) {}
    void ReportRuns(const std::vector<Run>& runs) override {
      ConsoleReporter::ReportRuns(runs);
      for (const Run& run : runs)
        for (const auto& [name, counter] : run.counters) {
          const std::string line = prefix_ + "." + run.benchmark_name() + "." + name;
          if (name == "bytes") out_.quiet_line(line, counter.value / 1e9, "GB/s");
          else if (name == "flop") out_.quiet_line(line, counter.value / 1e9, "GFLOP/s");
          else out_.quiet_line(line, counter.value, name.starts_with("of_") ? "ratio" : "1/s");
        }
    }

   private:
    report& out_;
    std::string prefix_;
  };
  lines reporter(out, prefix);
  benchmark::RunSpecifiedBenchmarks(&reporter);
}

}  // namespace bench
