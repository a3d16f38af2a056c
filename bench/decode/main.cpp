// Decoding, timed: bandwidth, batches, early exit, speculation, experts that come from disk.
//   ./run bench decode [--models DIR --text FILE] [--json FILE]
// DIR: examples/models, or a folder of other models of the same names and variants, and of their baselines as far as it
// has some; FILE: text for their prompts. Without them, random weights alone.
#include <filesystem>
#include <iostream>

#include "moeskip/formats/text.hpp"
#include "moeskip/model/checkpoint.hpp"

#include "../../examples/models/models.hpp"
#include "bandwidth.hpp"
#include "batches.hpp"
#include "early_exit.hpp"
#include "paging.hpp"
#include "speculation.hpp"

namespace {

namespace ms = moeskip;
namespace fs = std::filesystem;

/// Returns the worst ratio of the default decoder. The lines of `all_moe` carry the plain names.
template <class V> double trained_model(bench::report& out, const std::string& name, const fs::path& models,
                                        const std::vector<int>& unseen) {
  auto m = ms::load<V, bench::weights_in_bf16>((models / (name + ".safetensors")).string());
  const std::string of = name == "all_moe" ? "" : "." + name;
  const auto prompts = bench::prompts_of(unseen, 8, 64);
  bench::early_exit(out, "early_exit" + of, m, unseen);
  auto small = ms::load<models::draft, bench::weights_in_bf16>((models / "draft.safetensors").string());
  using small_drafts = ms::speculative_decoder::compose<ms::draft::small_model<decltype(small)>>;
  bench::batches(out, name, m, bench::prompts_of(unseen, 4, 64), m.sizes().context - 64,
                 bench::named<small_drafts>{"small_model", {.draft = {&small}}});
  bench::paging<V>(out, "paging" + of, models / (name + ".safetensors"), bench::prompts_of(unseen, 24, 64));
  bench::draft_model(out, "speculation.draft_model" + of, m, small, prompts);
  // Of one type: the baseline of either has default policies. That of every_4th is not among the shipped models.
  if (const fs::path file = models / (name + "_baseline.safetensors"); name == "all_moe" || fs::exists(file)) {
    auto baseline = ms::load<models::all_moe_baseline, bench::weights_in_bf16>(file.string());
    bench::over_baseline(out, name, m, baseline, prompts);
  } else {
    std::cerr << file.string() << " is not there: " << name << " is not compared with its baseline (./run study "
              << name << "_baseline)\n";
  }
  return bench::trained(out, name, m, prompts);
}

}  // namespace

int main(int argc, char** argv) {
  return bench::guarded([&] {
    std::string models, text;
    for (; argc > 2 && (std::string(argv[1]) == "--models" || std::string(argv[1]) == "--text"); argc -= 2, argv += 2)
      (std::string(argv[1]) == "--models" ? models : text) = argv[2];
    MOESKIP_CHECK(ms::config_error, models.empty() == text.empty(), "--models and --text go together");
    bench::report out(argc, argv);
    double worst = 1e9;
    if (!models.empty()) {
      const std::vector<int> unseen = ms::tokenizer::byte::encode(ms::read_text(text));
      worst = trained_model<models::all_moe>(out, "all_moe", models, unseen);
      worst = std::min(worst, trained_model<models::every_4th>(out, "every_4th", models, unseen));
    }
    {
      ms::model<bench::in_memory, bench::weights_in_bf16> m(bench::in_memory_shape, ms::seed{1});
      bench::plain_decode(out, m);
      bench::verify(out, m);
      bench::batches(out, "random_in_memory", m, {{1, 2, 3}, {400, 500}, {6000, 7, 8}, {9000}}, 32);
    }
    for (const double ratio : {bench::random_weights(out, "random_in_cache", bench::in_cache_shape, 200, 20),
                               bench::random_weights(out, "random_in_cache_long", bench::in_cache_shape, 480, 10),
                               bench::random_weights(out, "random_in_memory", bench::in_memory_shape, 128, 5)})
      worst = std::min(worst, ratio);
    out.line("speculation.worst_ratio", worst, "ratio", "plain decoding");
  });
}
