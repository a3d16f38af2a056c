// What a trained model is worth: bits per byte at every exit, in domain and out; how its experts are used, by text and
// by the model's own; what the loss of some experts costs.
#pragma once

#include <nlohmann/json.hpp>
#include <ostream>
#include <span>
#include <string>
#include <vector>

#include "moeskip/formats/atomic_file.hpp"
#include "moeskip/moeskip.hpp"
#include "moeskip/train/fit.hpp"

namespace ms = moeskip;

namespace study {

struct text_quality {
  std::vector<ms::exit_quality> exits;
  std::vector<ms::layer_routing> routing;
};

struct removal {
  int removed;  // experts of each MoE layer, drawn for each layer
  double bits;  // at full depth, mean over draws
};

struct results {
  ms::fit_result training;
  text_quality valid, other, generated;  // generated: the model's own text; of it only the routing says something
  std::vector<removal> removals;
};

template <class M> text_quality quality(M& m, std::span<const int> text, int length, int windows) {
  ms::arena memory;
  ms::routing_observer watch(memory);
  return {ms::evaluate(m, text, ms::window_options{length, 8, windows}, watch), watch.layers()};
}

/// `count` samples of a context each, at temperature 1, one behind the other.
template <class M> std::vector<int> own_text(M& m, std::span<const int> prompts, int count) {
  std::vector<int> all;
  for (int i = 0; i < count; ++i) {
    const std::size_t at = std::size_t(i) * (prompts.size() - 1) / std::size_t(count);
    const int context = m.sizes().context;
    const auto out =
        ms::generate(m, prompts.subspan(at, 1),
                     {.max_new_tokens = context - 1, .sampling = {.temperature = 1, .seed = {std::uint64_t(i)}}},
                     ms::decoder::autoregressive{}, [](const ms::emitted&) {});
    all.push_back(prompts[at]);
    for (const int id : out.ids()) all.push_back(id);
  }
  all.push_back(all.front());  // nobody's next token: every window is one sample
  return all;
}

/// Bits per byte at full depth where n experts, drawn anew for each layer, may not be chosen: mean of three draws.
template <class M> double without_experts(M& m, std::span<const int> text, int length, int n) {
  constexpr int draws_of = 3;
  double sum = 0;
  for (std::uint64_t i = 0; i < draws_of; ++i) {
    const ms::draws draw{ms::seed{77 + i}, ms::stream::user};
    std::vector<ms::expert_set> living;
    for (int l = 0; l < m.layers(); ++l) {
      ms::expert_set set = ms::expert_set::first(m.sizes().experts);
      for (std::uint64_t tries = 0; set.size() > m.sizes().experts - n; ++tries)
        set.erase(int(draw.below(std::uint64_t(m.sizes().experts), tries, std::uint64_t(l))));
      living.push_back(set);
    }
    ms::arena memory;
    ms::routing_observer watch(memory, living);
    sum += ms::evaluate(m, text, ms::window_options{length, 8, 100}, watch).back().bits_per_token;
  }
  return sum / draws_of;
}

template <class Trainer> results measure(Trainer& run, std::span<const int> valid, std::span<const int> other,
                                         int length, const ms::fit_result& training) {
  auto& m = run.trained();
  results r{training, {}, {}, {}, {}};
  r.valid = quality(m, valid, length, 800);
  if (!other.empty()) r.other = quality(m, other, length, 400);
  const std::vector<int> own = own_text(m, valid, 24);
  r.generated = quality(m, std::span<const int>(own), m.sizes().context, 0);
  if (m.sizes().moe_layers() > 0)
    for (const int share : {8, 4, 2})  // an eighth, a quarter, a half
      if (const int n = m.sizes().experts / share; n > 0 && m.sizes().experts - n >= 2)
        r.removals.push_back({n, without_experts(m, valid, length, n)});
  return r;
}

/// Means over layers; the worst layer's max violation; dead experts in all.
struct routing_summary {
  double max_violation = 0, entropy = 0;
  int dead = 0;
  std::array<double, ms::run_lengths.size()> distinct{}, independent{}, growth{}, growth_aligned{};
};
inline routing_summary summary(const std::vector<ms::layer_routing>& layers) {
  routing_summary s;
  const double n = double(layers.size());
  for (const ms::layer_routing& l : layers) {
    s.max_violation = std::max(s.max_violation, l.max_violation());
    s.entropy += l.entropy() / n, s.dead += l.dead();
    for (std::size_t i = 0; i < ms::run_lengths.size(); ++i) {
      s.distinct[i] += l.distinct(i) / n, s.independent[i] += l.independent(i) / n;
      s.growth[i] += l.growth(i) / n, s.growth_aligned[i] += l.growth_aligned(i) / n;
    }
  }
  return s;
}

inline nlohmann::json to_json(const text_quality& q) {
  nlohmann::json out;
  for (const ms::exit_quality& e : q.exits) out["bits_per_byte"][ms::text(e.exit_layer)] = e.bits_per_token;
  if (q.routing.empty()) return out;
  const routing_summary s = summary(q.routing);
  out["routing"] = {{"max_violation", s.max_violation},
                    {"entropy", s.entropy},
                    {"dead", s.dead},
                    {"run_lengths", ms::run_lengths},
                    {"distinct", s.distinct},
                    {"independent", s.independent},
                    {"growth", s.growth},
                    {"growth_aligned", s.growth_aligned}};
  return out;
}

/// Throws file_error.
template <class M> void write(const results& r, const std::string& name, std::uint64_t seed, const M& m,
                              const std::filesystem::path& path) {
  const ms::model_footprint f = ms::footprint(m);
  nlohmann::json out{{"name", name},
                     {"seed", seed},
                     {"weights", f.parameters},
                     {"active_weights", f.active_parameters},
                     {"steps", r.training.steps},
                     {"tokens", r.training.tokens},
                     {"seconds", r.training.seconds},
                     {"valid", to_json(r.valid)},
                     {"generated", to_json(r.generated)["routing"]}};
  if (!r.other.exits.empty()) out["other"] = to_json(r.other);
  for (const removal& x : r.removals) out["removed"][ms::text(x.removed)] = x.bits;
  for (const auto& [key, value] : ms::to_metadata(m.configuration())) out["config"][key] = value;
  ms::atomic_file file(path);
  const std::string lines = out.dump(1) + "\n";
  file.write(lines.data(), lines.size());
  file.commit();
}

inline void print(std::ostream& to, const results& r) {
  to << "  bits per byte by exit ";
  for (const ms::exit_quality& e : r.valid.exits) to << "  @" << e.exit_layer << " " << e.bits_per_token;
  to << "\n";
  if (!r.generated.routing.empty()) {
    const routing_summary v = summary(r.valid.routing), g = summary(r.generated.routing);
    to << "  routing: max violation " << v.max_violation << ", entropy " << v.entropy << ", dead " << v.dead
       << "; growth over 4 tokens " << v.growth[1] << ", aligned " << v.growth_aligned[1] << ", of generated text "
       << g.growth[1] << ", aligned " << g.growth_aligned[1] << "\n";
  }
  for (const removal& x : r.removals) to << "  without " << x.removed << " experts " << x.bits << "\n";
  to << std::flush;
}

}  // namespace study
