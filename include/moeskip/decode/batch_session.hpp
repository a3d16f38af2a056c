// Several sequences at once. Each is continued by a decoder written for one sequence, in a fibre of its own, with its
// own lengths, exits and acceptance; where fibres wait for the same layers of a model, their rows run in one call
// (decode/batch/). A row that leaves early waits no longer and costs no more; a sequence that is done makes room for
// the next prompt. Whoever else is in the batch, a sequence's tokens are those it would have alone.
#pragma once

#include <span>
#include <vector>

#include "moeskip/decode/batch/merged_calls.hpp"
#include "moeskip/decode/generate.hpp"

namespace moeskip {

template <class V, class B> class batch_session {
 public:
  batch_stats stats;  // of the last generation

  /// At most `slots` sequences at a time. Throws config_error for fewer than one.
  batch_session(model<V, B>& m, int slots) : lanes_(checked(slots), stats), calls_(m, lanes_, stats, false) {}

  /// Continues every prompt as generate() does, in any order; sink(i, emitted) gets the tokens of prompt i as they are
  /// settled, and can end its generation by returning false. What fails, fails all of them: throws config_error that
  /// names the prompt, and the batch can be used again.
  template <class Decoder, class Sink> std::vector<generated> generate(std::span<const std::vector<int>> prompts,
                                                                       const generation& options,
                                                                       const Decoder& decoder, Sink&& sink) {
    MOESKIP_CHECK(config_error, !lanes_.at_work(),
                  "this batch is at work: a sink cannot start another generation in it");
    const double start = batch_lanes::now();
    stats = {};
    std::vector<generated> out(prompts.size());
    std::size_t next = 0;
    lanes_.run(prompts.size(), [&](int slot) {
      while (next < prompts.size()) {
        const std::size_t i = next++;
        try {
          out[i] = moeskip::generate(*calls_.session(slot), prompts[i], options, decoder,
                                     [&](const emitted& e) { return sink(i, e); });
        } catch (const config_error& e) {
          fail<config_error>("prompts[", i, "]: ", e.what());
        }
      }
    });
    stats.seconds = batch_lanes::now() - start;
    return out;
  }
  template <class Decoder> std::vector<generated> generate(std::span<const std::vector<int>> prompts,
                                                           const generation& options, const Decoder& decoder) {
    return generate(prompts, options, decoder, [](std::size_t, const emitted&) {});
  }

 private:
  static int checked(int slots) {
    MOESKIP_CHECK(config_error, slots >= 1 && slots <= 4096, "a batch needs from 1 to 4096 slots, got ", slots);
    return slots;
  }

  batch_lanes lanes_;
  merged_calls<V, B> calls_;
};

}  // namespace moeskip
