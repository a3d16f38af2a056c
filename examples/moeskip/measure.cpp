#include "measure.hpp"

#include <filesystem>

#include "moeskip/eval/expert_parallel.hpp"
#include "moeskip/eval/perplexity.hpp"
#include "moeskip/eval/report/fill.hpp"
#include "moeskip/eval/touched_experts.hpp"

namespace tool {

namespace {

using ms::report::report_data;

void name(report_data& d, const model_facts& f, const std::string& text_name, const ms::window_options& w,
          std::size_t windows) {
  d.title = std::filesystem::path(f.file).stem().string();
  d.subtitle = ms::text(ms::report::in_words(f.sizes, f.experts_per_token), "; read on ",
                        std::filesystem::path(text_name).filename().string(), ", ", windows, " windows of ", w.length,
                        " bytes.");
  d.facts = {{"variant", f.variant}, {"policies", f.policies}, {"weights", f.weights}};
  ms::report::add_sizes(d, f.sizes, f.footprint);
  d.token_names = ms::report::byte_names();
}

nlohmann::json to_json(const ms::threshold_judged& t) {
  return {{"threshold", t.threshold},
          {"mean_exit_layer", t.mean_exit},
          {"bits_per_byte", t.bits},
          {"agreement", t.agreement}};
}

nlohmann::json depth_json(const report_data& d) {
  nlohmann::json out;
  for (std::size_t e = 0; e < d.exits.size(); ++e) {
    const ms::exit_judged& x = d.exits[e];
    nlohmann::json one{{"exit_layer", x.exit_layer},
                       {"bits_per_byte", x.bits},
                       {"perplexity", ms::perplexity(x.bits)},
                       {"correct", x.correct},
                       {"agreement", x.agreement}};
    if (e < d.histogram.size()) one["tokens_leaving"] = d.histogram[e];
    if (e < d.reliability.size()) {
      one["calibration_error"] = ms::calibration_error(d.reliability[e]);
      for (const ms::confidence_bin& b : d.reliability[e])
        one["reliability"].push_back(
            {{"tokens", b.tokens}, {"confidence", b.confidence}, {"correct", b.correct}, {"agreement", b.agreement}});
    }
    out["exits"].push_back(one);
  }
  if (d.histogram.empty()) return out;
  out["early_exit"] = to_json(d.at_threshold);
  for (const ms::threshold_judged& t : d.trade_off) out["trade_off"].push_back(to_json(t));
  for (const ms::surprise_group& g : d.by_surprise)
    out["by_surprise"].push_back({{"tokens", g.tokens}, {"bits", g.bits}, {"mean_exit_layer", g.mean_exit}});
  return out;
}

nlohmann::json experts_json(const report_data& d) {
  nlohmann::json out = nlohmann::json::array();
  for (std::size_t i = 0; i < d.routing.size(); ++i) {
    const ms::layer_routing& l = d.routing[i];
    nlohmann::json one{{"layer", l.layer},
                       {"choices", l.choices},
                       {"max_violation", l.max_violation()},
                       {"variation", l.variation()},
                       {"entropy", l.entropy()},
                       {"dead", l.dead()},
                       {"gate_confidence", l.confidence()},
                       {"first_gate_share", l.first_share()}};
    for (const int p : {2, 4, 8})
      if (p <= l.experts) one["overload"][ms::text(p)] = ms::overload(std::span<const long long>(l.choices), p);
    for (std::size_t r = 0; r < ms::run_lengths.size(); ++r)
      if (l.runs[r]) one["distinct"][ms::text(ms::run_lengths[r])] = l.distinct(r);
    if (i < d.experts.size()) {
      const auto& [even, odd] = d.experts[i].ids;
      one["id_information"] = even.information(), one["predicted_by_id"] = odd.predicted(even);
      one["predicted_blindly"] = odd.predicted_blindly(even);
      const auto pairs = [](const ms::expert_pairs& p) {
        nlohmann::json rows = nlohmann::json::array();
        for (int a = 0; a < p.rows(); ++a) {
          rows.push_back(nlohmann::json::array());
          for (int b = 0; b < p.cols(); ++b) rows.back().push_back(p.together(a, b));
        }
        return rows;
      };
      if (const ms::choice_overlap& foretold = d.experts[i].foretold; foretold.all) one["foretold"] = foretold.share();
      if (l.per_token > 1) one["together"] = pairs(d.experts[i].within);
      if (d.experts[i].before.tokens()) one["together_with_layer_before"] = pairs(d.experts[i].before);
    }
    out.push_back(one);
  }
  return out;
}

}  // namespace

report_data measure(any_model& m, std::span<const int> tokens, const ms::window_options& windows,
                    const std::string& text_name, const threshold_option& threshold, bool keep_choices) {
  report_data d;
  const model_facts& f = m.facts();
  const texts all = windows_of(tokens, windows.length, windows.max_windows);
  name(d, f, text_name, windows, all.size());
  ms::arena memory;
  ms::expert_observer watch(memory, f.sizes.vocab, keep_choices);
  const std::vector<ms::exit_quality> quality = m.evaluate(tokens, windows, watch);
  d.bits = quality.back().bits_per_token;
  d.routing = watch.layers(), d.experts = watch.counts();
  if (f.leaves_early()) {
    const auto [value, from] = threshold.of(f);
    ms::report::add_depth(d, m.read_depth(all), value, from);
  } else {
    d.exits = {{.exit_layer = f.sizes.layers, .bits = d.bits, .correct = 0, .agreement = 1}};
  }
  return d;
}

nlohmann::json to_json(const ms::report::decoder_speed& s) {
  nlohmann::json out{{"decoder", s.name},
                     {"tokens_per_second", s.stats.tokens_per_second()},
                     {"relative", s.relative},
                     {"relative_lowest", s.lowest},
                     {"relative_highest", s.highest},
                     {"mean_exit_layer", s.mean_exit},
                     {"layers_per_token", double(s.stats.layer_steps) / std::max(1, s.stats.tokens)},
                     {"experts_per_token", ms::experts_touched(s.stats)},
                     {"bytes_per_token", s.bytes},
                     {"flop_per_token", s.flop},
                     {"roof_tokens_per_second", s.roof},
                     {"same_text", s.same},
                     {"acceptance_rate", nullptr}};
  if (s.stats.drafted) {
    out["acceptance_rate"] = s.stats.acceptance_rate();
    out["drafted_at"] = s.stats.drafted_at, out["accepted_at"] = s.stats.accepted_at;
  }
  const auto cost = [](const ms::report::stage_cost& c) {
    return nlohmann::json{{"seconds_per_token", c.seconds}, {"bytes_per_token", c.bytes}, {"flop_per_token", c.flop}};
  };
  for (const ms::report::stage_cost& c : s.stages) out["stages"][c.name] = cost(c);
  if (s.stats.drafted) out["draft"] = cost(s.drafting), out["verify"] = cost(s.verifying);
  return out;
}

nlohmann::json to_json(const report_data& d) {
  nlohmann::json out{{"title", d.title},
                     {"bits_per_byte", d.bits},
                     {"parameters", d.parameters},
                     {"active_parameters", d.active_parameters},
                     {"layers", d.layers}};
  for (const auto& [key, value] : d.facts) out["facts"][key] = value;
  out.update(depth_json(d));
  out["experts"] = experts_json(d);
  for (const ms::report::decoder_speed& s : d.speeds) out["speeds"].push_back(to_json(s));
  if (!d.speeds.empty())
    out["machine"] = d.machine, out["read_bytes_per_second"] = d.read, out["flop_per_second"] = d.peak;
  return out;
}

}  // namespace tool
