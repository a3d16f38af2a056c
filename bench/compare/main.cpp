// What skipping buys, in one table: a baseline MoE of the same size, trained without exits and dropout and decoded
// plainly, and the model that skips: decoded plainly, left early, and speculating in every way, on the same prompts.
//   ./run bench compare [--model FILE] [--baseline FILE] [--draft FILE] [--text FILE] [--json FILE]
#include <optional>

#include "../../examples/models/models.hpp"
#include "contest.hpp"
#include "drafting.hpp"
#include "options.hpp"
#include "quality.hpp"
#include "table.hpp"

namespace {

using namespace bench;

using skipping = ms::model<models::all_moe, weights_in_bf16>;
using plain_model = ms::model<models::all_moe_baseline, weights_in_bf16>;  // and the draft: default policies both
using texts = std::span<const std::vector<int>>;

template <class Draft> auto speculating(Draft draft) {
  return ms::speculative_decoder::compose<Draft>{.draft = std::move(draft)};
}

/// The baseline, which knows one way to be faster: a token's better expert drafts for both.
void decode_baseline(contest<skipping>& all, plain_model& m, texts windows) {
  const ms::decoder::autoregressive plainly{};
  const double bits = bits_per_token(m, windows, plainly);
  const contestant& plain = all.add({"baseline", "baseline MoE", bits}, nullptr, m, plainly, all.greedily);
  all.add({"baseline_fewer_experts", "  one of its experts drafts", bits}, &plain, m,
          speculating(ms::draft::fewer_experts{.experts = 1}), all.greedily);
}

void leave_early(contest<skipping>& all, const contestant& plain, texts windows, float threshold) {
  using propagate = ms::decoder::early_exit<ms::exit_rule::max_probability, ms::missing_kv::propagate>;
  using recompute = ms::decoder::early_exit<ms::exit_rule::max_probability, ms::missing_kv::recompute>;
  const propagate leaving{.rule = {.threshold = threshold}};
  const recompute exact{.rule = {.threshold = threshold}};
  all.add({"early_exit", "early exit", bits_per_token(all.model, windows, leaving)}, &plain, all.model, leaving,
          all.greedily);
  all.add({"early_exit_exact", "early exit, true keys", bits_per_token(all.model, windows, exact)}, &plain, all.model,
          exact, all.greedily);
}

using half_depth = ms::speculative_decoder::compose<ms::draft::self, ms::acceptance::exact, ms::draft_length::fixed>;

/// Lossless: bits are plain decoding's.
void speculate(contest<skipping>& all, const contestant& plain, plain_model* small) {
  skipping& m = all.model;
  const auto add = [&](const char* key, const char* name, const auto& decoder, ms::decode_work* also = nullptr) {
    all.add({key, name, plain.bits}, &plain, m, decoder, all.greedily, also);
  };
  add("self", "self-speculation", models::all_moe::decoder{});
  add("self_fixed", "  half depth, 4 tokens", half_depth{});
  add("lookup", "earlier text drafts", speculating(ms::draft::lookup{}));
  add("lookup_or_self", "earlier text, else self",
      speculating(ms::draft::either<ms::draft::lookup, ms::draft::self>{}));
  if (!small) return;
  ms::decode_work drafts;
  add("small_model", "small model drafts",
      speculating(counted_small_model<plain_model>{.base = {small}, .to = &drafts}), &drafts);
}

/// Greedy text never shows what typical acceptance loses, so tokens are drawn here.
void speculate_typically(contest<skipping>& all, const contestant& plain, texts windows) {
  using typical = ms::speculative_decoder::compose<ms::draft::self, ms::acceptance::typical, ms::draft_length::fixed>;
  ms::session<models::all_moe, weights_in_bf16> s(all.model);
  const int exit = ms::draft::self::on<decltype(s)>({}, s).exit_layer();
  all.add({"sampled_self_fixed", "drawn: half depth, 4 tokens", plain.bits}, &plain, all.model, half_depth{},
          all.sampled);
  all.add({"sampled_typical", "  typical acceptance, LOSSY", typical_bits(all.model, windows, {}, exit)}, &plain,
          all.model, typical{}, all.sampled);
}

void print_model(const char* what, const std::string& file, const ms::model_footprint& f) {
  std::printf("%-9s %s: %.1f M weights, %.1f M active for a token, bf16\n", what, fs::path(file).filename().c_str(),
              double(f.parameters) / 1e6, double(f.active_parameters) / 1e6);
}

/// Plain decoding reads the active weights, once a token: the count is checked against the formula.
void expect_active_weights(const contestant& plain, const ms::model_footprint& f) {
  const double read = plain.per_token(plain.done.weights), expected = double(f.active_parameters);
  MOESKIP_CHECK(ms::error, std::abs(read / expected - 1) < 1e-9, "plain decoding read ", read,
                " weights a token, and not its active ones, ", expected);
}

/// Within 2 %: a shared expert saves a router's row.
bool as_large(const ms::model_footprint& a, const ms::model_footprint& b) {
  const auto near = [](double x, double y) { return std::abs(x - y) < 0.02 * y; };
  return near(double(a.parameters), double(b.parameters)) &&
         near(double(a.active_parameters), double(b.active_parameters));
}

/// The one that was asked for, or the shipped one where the two can be compared.
std::optional<plain_model> load_baseline(std::map<std::string, std::string>& given, const skipping& m) {
  const std::string file = file_of(given, "--baseline", "all_moe_baseline.safetensors");
  if (file == "none") return {};
  auto baseline = ms::load<models::all_moe_baseline, weights_in_bf16>(file);
  MOESKIP_CHECK(ms::config_error, baseline.sizes().context >= m.sizes().context, "--baseline: ", file,
                ": expected a context of at least ", m.sizes().context, ", got ", baseline.sizes().context);
  if (given["--baseline"].empty() && !as_large(ms::footprint(baseline), ms::footprint(m))) {
    std::printf("baseline  none: %s is not as large as the model; --baseline FILE names one\n",
                fs::path(file).filename().c_str());
    return {};
  }
  print_model("baseline", file, ms::footprint(baseline));
  return baseline;
}

void print_notes(const contest<skipping>& all) {
  std::printf(
      "speed: against plain decoding of the model before and after it, median of %zu. of baseline: the same, the "
      "baseline being 1.\n"
      "layers: run for a token, drafts included. experts: distinct ones of each call. MB, MFLOP: a token, read and "
      "computed. same\n"
      "text: as plain decoding of the same model. Speculation is lossless, so its bits are plain decoding's; those of "
      "early exit are\n"
      "as it decodes. Early exit fills in keys that a token lacks from where it left; true keys: it makes up for the "
      "layers later,\n"
      "several tokens at once. drawn: at temperature 1, and so is what their speed is against; typical acceptance "
      "lets stand what the\n"
      "full model finds likely enough, and its bits are those of tokens that a draft proposes.\n",
      all.rows.back().against.ratios.size());
}

void run(int argc, char** argv) {
  std::vector<char*> rest{argv[0]};
  auto given = parse(argc, argv, rest);
  report out(int(rest.size()), rest.data());
  const std::string model_file = file_of(given, "--model", "all_moe.safetensors");
  const std::string draft_file = file_of(given, "--draft", "draft.safetensors");
  auto m = ms::load<models::all_moe, weights_in_bf16>(model_file);
  print_model("model", model_file, ms::footprint(m));
  auto baseline = load_baseline(given, m);
  std::optional<plain_model> small;
  if (draft_file != "none") {
    small.emplace(ms::load<models::all_moe_baseline, weights_in_bf16>(draft_file));
    print_model("draft", draft_file, ms::footprint(*small));
  }
  const float threshold = threshold_of(given["--threshold"], model_file);
  const std::string text = given["--text"].empty() ? own_documents() : ms::read_text(given["--text"]);
  const std::vector<int> unseen = ms::tokenizer::byte::encode(text);

  const int context = m.sizes().context, prompt = std::min(64, context / 4);
  const std::size_t prompts = std::size_t(number("--prompts", given["--prompts"], 1, 1e6));
  const setting greedily{prompts_of(unseen, prompts, std::size_t(prompt)), context - prompt, 3};
  setting sampled = greedily;
  sampled.sampling = {.temperature = 1, .seed = ms::seed{1}};
  const auto windows = ms::cut_windows(unseen, context - 1, 48);
  MOESKIP_CHECK(ms::config_error, !windows.empty(), "--text: is too short: expected at least ", context, " bytes, got ",
                unseen.size());
  std::printf("text      %s: %zu prompts of %d bytes, %d new ones each, greedy; bits per byte of %zu windows\n",
              given["--text"].empty() ? "moeskip's documents" : fs::path(given["--text"]).filename().c_str(), prompts,
              prompt, greedily.tokens, windows.size());
  std::printf("exits at  confidence %s; %d threads\n\n", fixed(threshold, 2).c_str(), ms::thread_count());
  std::fflush(stdout);

  contest<skipping> all{m, greedily, sampled};
  if (baseline) decode_baseline(all, *baseline, windows);
  const ms::decoder::autoregressive plainly{};
  const contestant& plain =
      all.add({"plain", "plain decoding", bits_per_token(m, texts(windows), plainly)}, nullptr, m, plainly, greedily);
  expect_active_weights(plain, ms::footprint(m));
  leave_early(all, plain, windows, threshold);
  speculate(all, plain, small ? &*small : nullptr);
  speculate_typically(all, plain, windows);

  std::printf("%s\n", table_of(all.rows, baseline ? 0 : -1).c_str());
  print_notes(all);
  for (const contestant& c : all.rows) write(out, c);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && (std::string(argv[1]) == "--help" || std::string(argv[1]) == "-h")) {
    std::printf("%s", usage);
    return 0;
  }
  return bench::guarded([&] { run(argc, argv); });
}
