// What skipping buys, in one table: a baseline MoE of the same size, trained without exits and dropout and decoded plainly, and
// the model that skips: decoded plainly, left early, and speculating in every way, on the same prompts.
//   ./run bench compare [--model FILE] [--baseline FILE] [--draft FILE] [--text FILE] [--json FILE]
#include <filesystem>
#include <map>

#include "moeskip/eval/calibration.hpp"
#include "moeskip/formats/text.hpp"
#include "moeskip/model/checkpoint.hpp"

#include "../../examples/models/models.hpp"
#include "drafting.hpp"
#include "quality.hpp"
#include "table.hpp"

namespace {

using namespace bench;
namespace fs = std::filesystem;

constexpr const char* usage =
    "compare: a baseline MoE against a model that skips, on the same prompts\n"
    "  --model FILE      a model of all_moe or every_4th (examples/models/all_moe.safetensors)\n"
    "  --baseline FILE   a MoE of the default policies, as large; `./run study baseline` trains one\n"
    "                    (examples/models/baseline.safetensors; without it the table has no such row)\n"
    "  --draft FILE      a small dense model (examples/models/draft.safetensors; without it likewise)\n"
    "  --text FILE       prompts are pieces of it, and bits per byte are measured on it (moeskip's documents)\n"
    "  --threshold P     of early exit (as calibrated in the file, else 0.9)\n"
    "  --prompts N       (8)\n"
    "  --json FILE       one JSON object a line is appended to it\n";

using skipping = ms::model<models::all_moe, weights_in_bf16>;
using plain_model = ms::model<models::draft, weights_in_bf16>;  // baseline and draft alike: default policies

/// Options by name; --json is the report's.
std::map<std::string, std::string> parse(int argc, char** argv, std::vector<char*>& rest) {
  std::map<std::string, std::string> given{{"--model", ""},     {"--baseline", ""}, {"--draft", ""}, {"--text", ""},
                                           {"--threshold", ""}, {"--prompts", "8"}, {"--json", ""}};
  for (int i = 1; i < argc; i += 2) {
    MOESKIP_CHECK(ms::config_error, given.contains(argv[i]), "no such option: ", argv[i], "; --help lists them");
    MOESKIP_CHECK(ms::config_error, i + 1 < argc, argv[i], " wants a value");
    if (std::string(argv[i]) == "--json") rest.push_back(argv[i]), rest.push_back(argv[i + 1]);
    given[argv[i]] = argv[i + 1];
  }
  return given;
}

double number(const std::string& option, const std::string& value, double low, double high) {
  std::size_t used = 0;
  double x = low - 1;
  try {
    x = std::stod(value, &used);
  } catch (const std::exception&) {}
  MOESKIP_CHECK(ms::config_error, used == value.size() && x >= low && x <= high, option, ": expected a number from ",
                low, " to ", high, ", got '", value, "'");
  return x;
}

/// The file that was asked for, which must be there; else the shipped one, if it is.
std::string found(const std::string& asked, const char* shipped) {
  if (!asked.empty()) return asked;
  const fs::path path = fs::path(MOESKIP_SOURCE_DIR) / "examples/models" / shipped;
  return fs::exists(path) ? path.string() : std::string();
}

/// What moeskip's authors wrote in words.
std::string own_documents() {
  std::vector<fs::path> files{fs::path(MOESKIP_SOURCE_DIR) / "README.md"};
  for (const auto& entry : fs::recursive_directory_iterator(fs::path(MOESKIP_SOURCE_DIR) / "docs"))
    if (entry.path().extension() == ".md") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  std::string all;
  for (const fs::path& file : files) all += ms::read_text(file) + "\n";
  return all;
}

float threshold_of(const std::string& asked, const std::string& model) {
  if (!asked.empty()) return float(number("--threshold", asked, 0, 2));
  const ms::string_map metadata = ms::read_metadata(model);
  return metadata.contains("exit_calibration.rule")
             ? ms::calibration_from(metadata, model).as<ms::exit_rule::max_probability>().threshold
             : 0.9f;
}

struct contest {
  skipping& model;
  const setting& set;
  std::vector<std::vector<int>> windows;  // that quality is measured on
  std::vector<contestant> rows{};

  template <class M, class Decoder> void add(const char* key, std::string name, M& m, const Decoder& decoder,
                                             double bits, ms::decode_work* also = nullptr) {
    std::fprintf(stderr, "compare: %s …\n", name.c_str());
    rows.push_back({.key = key, .name = std::move(name), .bits = bits});
    compete(rows.back(), model, m, set, decoder, also);
  }
  template <class M, class Decoder> double bits(M& m, const Decoder& decoder) const {
    return bits_per_token(m, std::span<const std::vector<int>>(windows), decoder);
  }
};

template <class Draft> auto speculating(Draft draft) {
  return ms::speculative_decoder::compose<Draft>{.draft = std::move(draft)};
}

void speculate(contest& all, double bits, plain_model* small) {
  skipping& m = all.model;
  all.add("self", "self-speculation", m, models::all_moe::decoder{}, bits);
  all.add("self_fixed", "  half depth, 4 tokens", m,
          ms::speculative_decoder::compose<ms::draft::self, ms::acceptance::exact, ms::draft_length::fixed>{}, bits);
  all.add("lookup", "earlier text drafts", m, speculating(ms::draft::lookup{}), bits);
  all.add("lookup_or_self", "earlier text, else self", m,
          speculating(ms::draft::either<ms::draft::lookup, ms::draft::self>{}), bits);
  if (!small) return;
  ms::decode_work drafts;
  all.add("small_model", "small model drafts", m,
          speculating(counted_small_model<plain_model>{.base = {small}, .to = &drafts}), bits, &drafts);
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

void run(int argc, char** argv) {
  std::vector<char*> rest{argv[0]};
  auto given = parse(argc, argv, rest);
  report out(int(rest.size()), rest.data());
  const std::string model_file = found(given["--model"], "all_moe.safetensors");
  MOESKIP_CHECK(ms::config_error, !model_file.empty(),
                "examples/models/all_moe.safetensors is not there: give a model with --model");
  const std::string baseline_file = found(given["--baseline"], "baseline.safetensors");
  const std::string draft_file = found(given["--draft"], "draft.safetensors");
  auto m = ms::load<models::all_moe, weights_in_bf16>(model_file);
  std::optional<plain_model> baseline, small;
  if (!baseline_file.empty()) baseline.emplace(ms::load<models::draft, weights_in_bf16>(baseline_file));
  if (!draft_file.empty()) small.emplace(ms::load<models::draft, weights_in_bf16>(draft_file));
  const float threshold = threshold_of(given["--threshold"], model_file);
  const std::string text = given["--text"].empty() ? own_documents() : ms::read_text(given["--text"]);
  const std::vector<int> unseen = ms::tokenizer::byte::encode(text);

  const int context = m.sizes().context, prompt = std::min(64, context / 4);
  MOESKIP_CHECK(ms::config_error, !baseline || baseline->sizes().context >= context, "--baseline: ", baseline_file,
                ": expected a context of at least ", context, ", got ", baseline ? baseline->sizes().context : 0);
  const std::size_t prompts = std::size_t(number("--prompts", given["--prompts"], 1, 1e6));
  const setting set{prompts_of(unseen, prompts, std::size_t(prompt)), context - prompt, 3};
  contest all{m, set, ms::cut_windows(unseen, context - 1, 48)};
  MOESKIP_CHECK(ms::config_error, !all.windows.empty(), "--text: is too short: expected at least ", context,
                " bytes, got ", unseen.size());
  print_model("model", model_file, ms::footprint(m));
  if (baseline) print_model("baseline", baseline_file, ms::footprint(*baseline));
  else std::printf("baseline  none: there is no examples/models/baseline.safetensors; --baseline FILE names one\n");
  if (small) print_model("draft", draft_file, ms::footprint(*small));
  else std::printf("draft     none: there is no examples/models/draft.safetensors; --draft FILE names one\n");
  std::printf("text      %s: %zu prompts of %d bytes, %d new ones each, greedy; bits per byte of %zu windows\n",
              given["--text"].empty() ? "moeskip's documents" : fs::path(given["--text"]).filename().c_str(), prompts,
              prompt, set.tokens, all.windows.size());
  std::printf("exits at  confidence %s; %d threads\n\n", fixed(threshold, 2).c_str(), ms::thread_count());
  std::fflush(stdout);

  const ms::decoder::autoregressive plainly{};
  if (baseline) all.add("baseline", "baseline MoE", *baseline, plainly, all.bits(*baseline, plainly));
  const double bits = all.bits(m, plainly);
  all.add("plain", "plain decoding", m, plainly, bits);
  expect_active_weights(all.rows.back(), ms::footprint(m));
  using propagate = ms::decoder::early_exit<ms::exit_rule::max_probability, ms::missing_kv::propagate>;
  using recompute = ms::decoder::early_exit<ms::exit_rule::max_probability, ms::missing_kv::recompute>;
  const propagate leaving{.rule = {.threshold = threshold}};
  const recompute exact{.rule = {.threshold = threshold}};
  all.add("early_exit", "early exit", m, leaving, all.bits(m, leaving));
  all.add("early_exit_exact", "early exit, true keys", m, exact, all.bits(m, exact));
  speculate(all, bits, small ? &*small : nullptr);

  std::printf("%s\n", table_of(all.rows, baseline ? 0 : -1).c_str());
  std::printf(
      "speed: against plain decoding of the model before and after it, median of %zu. of baseline: the same, the "
      "baseline\n"
      "being 1. layers: run for a token, drafts included. experts: distinct ones of each call. MB, MFLOP: a token, "
      "read and\n"
      "computed. Speculation is lossless, so its bits are plain decoding's. Those of early exit: as it decodes. Early "
      "exit\n"
      "fills in keys that a token lacks from where it left; true keys: it makes up for the layers later, several "
      "tokens at once.\n",
      all.rows.back().against.ratios.size());
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
