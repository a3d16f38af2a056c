// From what was measured to what a report shows: the parts of report_data that every program fills alike.
#pragma once

#include <algorithm>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moeskip/eval/report/data.hpp"
#include "moeskip/eval/report/markup.hpp"
#include "moeskip/eval/roofline.hpp"
#include "moeskip/eval/stage_work.hpp"
#include "moeskip/formats/tokenizer/byte.hpp"
#include "moeskip/model/describe.hpp"

namespace moeskip::report {

/// How a reader sees each of 256 bytes.
inline std::vector<std::string> byte_names() {
  std::vector<std::string> names;
  for (int id = 0; id < 256; ++id)
    names.push_back(id == ' '                ? "␣"
                    : id == '\n'             ? "↵"
                    : id == '\t'             ? "⇥"
                    : id > 0x20 && id < 0x7F ? std::string(1, char(id))
                                             : text("#", id));
  return names;
}

/// "A mixture of experts of 8 layers, …"
inline std::string in_words(const sizes& s, int experts_per_token) {
  if (s.moe_layers() == 0) return text("A dense model of ", s.layers, " layers");
  return text("A mixture of experts of ", s.layers, " layers, ", s.moe_layers(), " of them with ", s.experts,
              " experts, ", experts_per_token, " chosen for each token");
}

inline void add_sizes(report_data& d, const sizes& s, const model_footprint& f) {
  d.layers = s.layers;
  d.parameters = double(f.parameters), d.active_parameters = double(f.active_parameters);
  d.facts.push_back({"width", text(s.dim)});
  d.facts.push_back({"context", text(s.context)});
  d.facts.push_back({"bytes read per token", grouped(f.bytes_per_token)});
}

/// All that readings say. `from`: where the threshold comes from.
inline void add_depth(report_data& d, const depth_readings& r, float threshold, std::string from) {
  d.threshold = threshold, d.threshold_from = std::move(from);
  d.exits = judge_exits(r);
  d.tokens_read = static_cast<long long>(r.tokens());
  d.at_threshold = judge_threshold(r, threshold);
  d.histogram = exit_histogram(r, threshold);
  for (const float t :
       {0.1f, 0.2f, 0.3f, 0.4f, 0.5f, 0.6f, 0.7f, 0.8f, 0.85f, 0.9f, 0.95f, 0.98f, 0.99f, 0.995f, 0.999f, 2.0f})
    d.trade_off.push_back(judge_threshold(r, t));
  if (r.tokens() >= 100) d.by_surprise = depth_by_surprise(r, threshold);
  for (std::size_t e = 0; e + 1 < r.exits.size(); ++e) d.reliability.push_back(reliability(r, e));
}

/// What its tokens cost, all and stage by stage, for the tokens of s.stats. Keys and values are f32.
inline void add_work(decoder_speed& s, const stage_work& w, double bytes_per_weight, const machine_limits& limits) {
  const double tokens = std::max(1, s.stats.tokens);
  const auto cost = [&](std::string_view name, const decode_work& of, double seconds) {
    return stage_cost{std::string(name), seconds / tokens, of.bytes(bytes_per_weight, sizeof(float)) / tokens,
                      of.flop() / tokens};
  };
  const decode_work all = w.total();
  const stage_cost sum = cost("all", all, all.seconds);
  s.bytes = sum.bytes, s.flop = sum.flop, s.roof = limits.roof(s.bytes, s.flop);
  s.stages.clear();
  for (std::size_t i = 0; i < w.of.size(); ++i) s.stages.push_back(cost(stage_names[i], w.of[i], w.of[i].seconds));
  s.drafting = cost("draft", w.drafted, s.stats.draft_seconds);
  s.verifying = cost("verify", all - w.drafted, s.stats.verify_seconds);
}

/// What stands below each text: how its decoder came by the tokens.
inline constexpr std::string_view note_on_speculation =
    "Shallow layers draft, all layers check: the text of plain decoding, token for token. Rounded: drafted and "
    "accepted.";
inline std::string note_on_early_exit(float threshold) {
  return text("A token leaves at the first exit with confidence ", fixed(threshold, 2),
              "; what it skipped is filled in from where it left. The text may differ from plain decoding.");
}

/// A prompt and its continuation, both in bytes.
inline decoded_text decoded_bytes(std::string name, std::string_view note, std::span<const int> prompt,
                                  const std::vector<emitted>& tokens, bool speculative) {
  decoded_text t{.name = std::move(name), .note = std::string(note), .tokens = tokens, .speculative = speculative};
  t.prompt = tokenizer::byte::decode(prompt);
  tokenizer::byte::stream characters;
  for (const emitted& e : tokens) t.pieces.push_back(characters.push(e.token));
  return t;
}

}  // namespace moeskip::report
