// generate: a prompt in, tokens out, one at a time.
#pragma once

#include <algorithm>
#include <span>
#include <string_view>
#include <vector>

#include "moeskip/decode/autoregressive.hpp"
#include "moeskip/decode/early_exit.hpp"
#include "moeskip/decode/speculative/compose.hpp"

namespace moeskip {

struct generation {
  int max_new_tokens = 0;  // 0: until the context is full
  moeskip::sampling sampling{};
  std::vector<int> stop{};  // ends after any of these tokens
};

enum class finish { length, stop_token, cancelled, context_full };

constexpr std::string_view describe(finish reason) {
  switch (reason) {
    case finish::length:
      return "all requested tokens were generated";
    case finish::stop_token:
      return "a stop token was generated";
    case finish::cancelled:
      return "the receiver asked to stop";
    case finish::context_full:
      return "the context is full";
  }
  return "";
}

struct generated {
  std::vector<emitted> tokens;
  decode_stats stats;
  finish reason = finish::length;

  std::vector<int> ids() const {
    std::vector<int> out;
    for (const emitted& e : tokens) out.push_back(e.token);
    return out;
  }
};

/// Continues a prompt in an existing session, whose memory is used again: nothing is allocated per token. The sink gets
/// each token as it is settled; one that returns bool can end the generation by returning false. Afterwards the session
/// holds the prompt and the tokens returned, no more, with keys and values of every layer: any decoder can go on from
/// there. After an exception, prefill it anew.
/// Throws config_error for a bad prompt, bad options, or more tokens than the context has room for.
template <class V, class B, class Decoder, class Sink> generated generate(session<V, B>& s, std::span<const int> prompt,
                                                                          const generation& options,
                                                                          const Decoder& decoder, Sink&& sink) {
  const int context = s.context(), length = int(prompt.size());
  // The last token is emitted without being run, so one more fits than there are positions.
  const int room = context - length + 1;
  MOESKIP_CHECK(config_error, options.max_new_tokens >= 0,
                "max_new_tokens must be 0 (until the context is full) or more, got ", options.max_new_tokens);
  if (length > 0 && length <= context)
    MOESKIP_CHECK(config_error, options.max_new_tokens <= room, "the context would be exhausted: a prompt of ", length,
                  " tokens leaves room for ", room, " new ones in a context of ", context, ", asked for ",
                  options.max_new_tokens);
  static_assert(moeskip::Decoder<Decoder, session<V, B>, sampler>,
                "moeskip: the decoder needs `name` and `on<Session>` "
                "with `round(session, sampler, most, sink)`. See moeskip/concepts/decoder.hpp");
  sampler draw_from(options.sampling);
  typename Decoder::template on<session<V, B>> rounds(decoder, s);
  if constexpr (requires { rounds.stop_at(options.stop); }) rounds.stop_at(options.stop);
  s.prefill(prompt);
  s.stats = {};
  s.meter().reset_experts_read();

  generated out;
  const int most = options.max_new_tokens ? options.max_new_tokens : room;
  out.reason = options.max_new_tokens ? finish::length : finish::context_full;
  out.tokens.reserve(std::size_t(most));
  bool going = true;
  const auto receive = [&](const emitted& e) {
    if (!going) return;  // the rest of a round after its end
    out.tokens.push_back(e);
    if constexpr (std::is_same_v<std::invoke_result_t<Sink&, const emitted&>, bool>) {
      if (!sink(e)) going = false, out.reason = finish::cancelled;
    } else {
      sink(e);
    }
    for (const int token : options.stop)
      if (going && e.token == token) going = false, out.reason = finish::stop_token;
  };
  const double start = s.seconds();
  while (going && int(out.tokens.size()) < most) rounds.round(s, draw_from, most - int(out.tokens.size()), receive);
  if constexpr (requires { rounds.finish(s); }) rounds.finish(s);
  s.stats.seconds = s.seconds() - start;
  // A round may have settled more tokens than were taken: neither the session nor the statistics keep them.
  s.truncate(length + int(out.tokens.size()));
  s.stats.count(out.tokens);
  s.stats.experts_read = s.meter().experts_read();
  out.stats = s.stats;
  return out;
}

/// The same in a session of its own.
template <class V, class B, class Decoder, class Sink> generated generate(model<V, B>& m, std::span<const int> prompt,
                                                                          const generation& options,
                                                                          const Decoder& decoder, Sink&& sink) {
  session<V, B> s(m);
  return generate(s, prompt, options, decoder, std::forward<Sink>(sink));
}

/// The same with the variant's own decoder and its default numbers.
template <class V, class B, class Sink>
generated generate(model<V, B>& m, std::span<const int> prompt, const generation& options, Sink&& sink) {
  return generate(m, prompt, options, typename V::decoder{}, std::forward<Sink>(sink));
}
template <class V, class B> generated generate(model<V, B>& m, std::span<const int> prompt, const generation& options) {
  return generate(m, prompt, options, [](const emitted&) {});
}

}  // namespace moeskip
