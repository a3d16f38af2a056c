// Several sequences at once against one after the other: weights that rows of a call share are read once, so on a model
// larger than the caches a batch makes more tokens a second, the fewer experts its sequences share the less.
#pragma once

#include "speculation.hpp"

namespace bench {

template <class Decoder> struct named {
  const char* name;
  Decoder decoder;
};

/// Plainly, by the default decoder, and by more of them.
template <class V, class... More> void batches(report& out, const std::string& name, ms::model<V, weights_in_bf16>& m,
                                               const std::vector<std::vector<int>>& prompts, int tokens,
                                               const named<More>&... more) {
  const ms::generation options{.max_new_tokens = tokens};
  const auto one_by_one = [&] {
    ms::session<V, weights_in_bf16> alone(m);  // a new one, as the batch is
    return time_of([&] {
      for (const std::vector<int>& prompt : prompts)
        ms::generate(alone, prompt, options, ms::decoder::autoregressive{}, [](const ms::emitted&) {});
    });
  };
  const int slots = int(prompts.size());
  const auto line = [&](const std::string& what, const auto& decoder) {
    std::vector<double> ratios;
    double rows = 0;
    for (int repeat = -1; repeat < 5; ++repeat) {
      ms::batch_session together(m, slots);  // a new one: what was learned before does not help
      const double before = one_by_one();
      const double batch = time_of([&] { together.generate(prompts, options, decoder); });
      const double after = one_by_one();
      rows = double(together.stats.layer_rows) / double(together.stats.layer_calls);
      if (repeat >= 0) ratios.push_back((before + after) / 2 / batch);  // else warm-up
    }
    out.line(ms::text("batch_", slots, ".", name, ".", what), median(ratios), "ratio", "one by one, plainly",
             ms::text(rows, " rows a call"));
  };
  line("plain", ms::decoder::autoregressive{});
  line("default", typename V::decoder{});
  (line(more.name, more.decoder), ...);
}

}  // namespace bench
