// How gpu_time measures, and the lines that it prints: an object each on stdout, and for people on stderr. Each leaves
// at once, so who is stopped at a limit loses only what was not measured yet.
#pragma once

#include <cmath>
#include <cstdio>
#include <string>

#include "../measure.hpp"
#include "moeskip/cuda.hpp"
#include "moeskip/moeskip.hpp"

namespace bench {

namespace ms = moeskip;

inline const double started = seconds();
inline int failures = 0;

/// A result that is missing, and why. In quotes and backslashes of a reason nobody is interested.
inline void failed(const std::string& what, std::string reason) {
  for (char& c : reason)
    if (c == '"' || c == '\\' || c == '\n') c = '\'';
  std::printf("{\"what\": \"%s\", \"failed\": \"%s\"}\n", what.c_str(), reason.c_str());
  std::fflush(stdout);
  std::fprintf(stderr, "%-66s failed: %s\n", what.c_str(), reason.c_str());
  ++failures;
}

inline void line(const std::string& what, double value, const char* unit) {
  if (!std::isfinite(value)) return failed(what, "it is no finite number");
  std::printf("{\"what\": \"%s\", \"value\": %.6g, \"unit\": \"%s\"}\n", what.c_str(), value, unit);
  std::fflush(stdout);
  std::fprintf(stderr, "%-66s %12.4g %-12s (after %.0f s)\n", what.c_str(), value, unit, seconds() - started);
}

/// What work() throws is told, and loses nothing else.
template <class Work> void attempt(const std::string& what, Work&& work) {
  try {
    work();
  } catch (const std::exception& e) {
    failed(what, e.what());
  }
}

template <class Work> double median_time(int runs, Work&& work) {
  for (int i = 0; i < 2; ++i) work();  // pages go to the device, clocks rise
  std::vector<double> times;
  for (int i = 0; i < runs; ++i) times.push_back(time_of(work));
  return median(times);
}

/// Not zeros: a card that multiplies zeros needs less power, and its clocks rise.
inline float some(ms::index_t i) { return float(i * 7919 % 1009) / 1009 - 0.5f; }

/// Ids spread over a vocabulary.
inline std::vector<int> some_ids(int count, int vocab) {
  std::vector<int> ids(static_cast<std::size_t>(count));
  for (int i = 0; i < count; ++i) ids[std::size_t(i)] = int(ms::index_t(i) * 7919 % vocab);
  return ids;
}

/// Of a token of a loop on the device, and what a long generation did beyond a short one.
struct loop_cost {
  double seconds = 0;  // of a token
  double tokens = 0, rounds = 0, experts_read = 0;
};

/// The difference between a long and a short generation: scripts, memory that is taken anew and the tokens that the
/// host adds at the end are in both. Medians of pairs.
template <class Session, class Decoder> loop_cost time_loop(Session& s, std::span<const int> prompt,
                                                            const Decoder& decoder, int fewer, int more,
                                                            const ms::sampling& sampling = {}, int pairs = 5) {
  const auto run = [&](int tokens) {
    return ms::generate(s, prompt, {.max_new_tokens = tokens, .sampling = sampling},
                        ms::decoder::on_device<Decoder>{decoder, tokens}, [](const ms::emitted&) {})
        .stats;
  };
  run(more);  // warm-up
  std::vector<double> times;
  loop_cost cost;
  for (int i = 0; i < pairs; ++i) {
    const ms::decode_stats brief = run(fewer), lengthy = run(more);
    times.push_back((lengthy.seconds - brief.seconds) / (lengthy.tokens - brief.tokens));
    cost.tokens = lengthy.tokens - brief.tokens, cost.rounds = lengthy.rounds - brief.rounds;
    cost.experts_read = double(lengthy.experts_read - brief.experts_read);
  }
  cost.seconds = median(times);
  return cost;
}

}  // namespace bench
