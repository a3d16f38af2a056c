// Decoding, timed: bandwidth, batches, early exit, speculation.
//   ./run bench decode [--model FILE --text FILE] [--json FILE]     FILE: a model of examples/models, and text for its prompts
#include "moeskip/formats/text.hpp"
#include "moeskip/model/checkpoint.hpp"

#include "../../examples/models/models.hpp"
#include "bandwidth.hpp"
#include "batches.hpp"
#include "early_exit.hpp"
#include "speculation.hpp"

int main(int argc, char** argv) {
  namespace ms = moeskip;
  return bench::guarded([&] {
    std::string model, text;
    for (; argc > 2 && (std::string(argv[1]) == "--model" || std::string(argv[1]) == "--text"); argc -= 2, argv += 2)
      (std::string(argv[1]) == "--model" ? model : text) = argv[2];
    MOESKIP_CHECK(ms::config_error, model.empty() == text.empty(), "--model and --text go together");
    bench::report out(argc, argv);
    double worst = 1e9;
    if (!model.empty()) {
      auto m = ms::load<models::all_moe, bench::weights_in_bf16>(model);
      const std::vector<int> unseen = ms::tokenizer::byte::encode(ms::read_text(text));
      bench::early_exit(out, m, unseen);
      bench::batches(out, "all_moe", m, bench::prompts_of(unseen, 4, 64), m.sizes().context - 64);
      worst = std::min(worst, bench::trained(out, "all_moe", m, bench::prompts_of(unseen, 8, 64)));
    }
    {
      ms::model<bench::in_memory, bench::weights_in_bf16> m(bench::in_memory_shape, ms::seed{1});
      bench::plain_decode(out, m);
      bench::verify(out, m);
      bench::batches(out, "random_in_memory", m, {{1, 2, 3}, {400, 500}, {6000, 7, 8}, {9000}}, 32);
    }
    for (const double ratio : {bench::random_weights(out, "random_in_cache", bench::in_cache_shape, 200),
                               bench::random_weights(out, "random_in_cache_long", bench::in_cache_shape, 480),
                               bench::random_weights(out, "random_in_memory", bench::in_memory_shape, 128)})
      worst = std::min(worst, ratio);
    out.line("speculation.worst_ratio", worst, "ratio", "plain decoding");
  });
}
