// The page about the demo's own run: what every exit is worth on text that it has not seen, which experts work and
// which are dead, texts coloured by depth, speeds, and how it learned.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "../page/page.hpp"
#include "decoding.hpp"
#include "moeskip/base/parallel.hpp"
#include "moeskip/eval/machine_limits.hpp"
#include "moeskip/eval/report/fill.hpp"
#include "moeskip/formats/atomic_file.hpp"
#include "training.hpp"

namespace demo {

/// A decoder against plain decoding of the same repetition: what disturbed one disturbed the other.
inline ms::report::decoder_speed speed(const decoded& d, const decoded& plain, const ms::machine_limits& limits,
                                       double bytes_per_weight) {
  ms::report::decoder_speed s{.name = d.name, .stats = d.out.stats, .mean_exit = d.mean_exit_layer()};
  s.stats.seconds = s.stats.tokens / d.tokens_per_second();  // of the median repetition
  std::vector<double> ratios;
  for (std::size_t i = 0; i < d.rates.size(); ++i) ratios.push_back(d.rates[i] / plain.rates[i]);
  std::sort(ratios.begin(), ratios.end());
  s.relative = ratios[ratios.size() / 2], s.lowest = ratios.front(), s.highest = ratios.back();
  s.same = d.out.ids() == plain.out.ids();
  ms::report::add_work(s, d.work, bytes_per_weight, limits);
  return s;
}

/// exits: what the model, which `watch` looked at, made of the held-out text.
template <class B> void write_report(const std::filesystem::path& path, ms::model<variant, B>& m, const task& t,
                                     const std::vector<ms::exit_quality>& exits, const ms::expert_observer& watch,
                                     const training_outcome& trained, const comparison& c, const std::string& prompt) {
  constexpr int most_read = 128;  // windows, one by one
  const auto texts = ms::cut_windows(t.text.held_out, t.s.length, most_read);
  ms::report::report_data d{.title = std::filesystem::path(t.text.name).filename().string()};
  d.subtitle = ms::text(ms::report::in_words(m.sizes(), variant::router::experts_per_token), "; trained for ",
                        ms::grouped(ms::index_t(trained.steps)), " steps, read on the last tenth of the text.");
  d.facts = {{"seed", ms::text(t.seed.value)},
             {"trained for", minutes(trained.seconds)},
             {"weights", sizeof(ms::weight_t<B>) == 2 ? "bf16" : "f32"}};
  ms::report::add_sizes(d, m.sizes(), ms::footprint(m));
  d.bits = exits.back().bits_per_token;
  d.routing = watch.layers(), d.experts = watch.counts();
  d.token_names = ms::report::byte_names();
  const float threshold = t.s.early_exit.rule.threshold;
  ms::report::add_depth(d, ms::read_depth(m, std::span<const std::vector<int>>(texts)), threshold, "the demo's");
  const ms::machine_limits limits = ms::measure_limits(
      {reinterpret_cast<const std::byte*>(m.block().data()), std::size_t(m.block().size()) * sizeof(ms::weight_t<B>)});
  d.read = limits.read, d.peak = limits.peak;
  for (const decoded* one : {&c.plain, &c.early_exit, &c.speculative})
    d.speeds.push_back(speed(*one, c.plain, limits, sizeof(ms::weight_t<B>)));
  const std::vector<int> begun = ms::tokenizer::byte::encode(prompt);
  d.texts = {ms::report::decoded_bytes(c.early_exit.name, ms::report::note_on_early_exit(threshold), begun,
                                       c.early_exit.out.tokens, false),
             ms::report::decoded_bytes(c.speculative.name, ms::report::note_on_speculation, begun,
                                       c.speculative.out.tokens, true)};
  d.machine = ms::text("one prompt, ", c.plain.out.stats.tokens, " bytes; threads: ", ms::thread_count());
  d.training = trained.curves;
  for (const ms::exit_quality& q : exits)
    d.training.validation[q.exit_layer].push_back({double(trained.steps) * trained.tokens_per_step, q.bits_per_token});
  const std::string content = page::html(d);
  ms::atomic_file file(path);
  file.write(content.data(), content.size());
  file.commit();
}

}  // namespace demo
