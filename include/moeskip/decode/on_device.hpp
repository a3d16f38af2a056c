// A decoder whose loop runs where the model runs: one kernel stays on the device, makes tokens one after the other or
// round after round, samples, leaves early, drafts and judges, and hands over tokens_per_call of them at a time.
//   ms::generate(session, prompt, options, ms::decoder::on_device<ms::decoder::early_exit<>>{})
// Tokens are drawn, drafts judged and exits asked as Base does it on the host, with the same random numbers. A law is
// summed in another order than there, so a sampled token, or an exit whose confidence lies within rounding of its
// threshold, may be another one. What the device cannot end in a whole round (the last tokens of a generation) Base does.
// Statistics have no seconds of drafts and verifications, and where the receiver ends a generation they have all that the
// device had made; the session's meter counts the experts that are read, and does not learn which.
#pragma once

#include <algorithm>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "moeskip/decode/on_device/loops.hpp"

namespace moeskip {

/// Backends whose device follows loops (backend/cuda/script.hpp).
template <class B> concept RunsLoops = requires { typename B::template loop<int, int>; };

namespace decoder {

template <class Base> struct on_device {
  static constexpr std::string_view name = "on_device";
  Base base{};
  int tokens_per_call = 32;

  template <class Session> class on {
    static_assert(RunsLoops<typename Session::model_type::backend_type>,
                  "moeskip: decoder::on_device needs a backend whose device follows loops, such as ms::cuda; on others "
                  "take its Base");
    using loop_type = moeskip::detail::device_loop<Base, Session>;
    using text_type = typename loop_type::text_type;

   public:
    /// Throws config_error for options that Base refuses, fewer than one token per call, and a session of a batch.
    on(const on_device& o, Session& s) : host_(o.base, s), loop_(o.base, s), per_call_(o.tokens_per_call) {
      MOESKIP_CHECK(config_error, per_call_ >= 1, "tokens_per_call must be at least 1, got ", per_call_);
      MOESKIP_CHECK(config_error, !s.shares_calls(),
                    "a loop on the device decodes one sequence by itself: expected a session of its own, got one whose "
                    "calls are shared or counted");
      MOESKIP_CHECK(config_error,
                    s.meter().most_experts() >= Session::model_type::variant_type::router::experts_per_token,
                    "a loop on the device visits all experts that a router chooses: the session's limit is ",
                    s.meter().most_experts());
    }
    /// Ids behind which a generation ends: the device makes no more tokens then.
    void stop_at(std::span<const int> ids) { stops_.assign(ids.begin(), ids.end()); }

    template <class Sink> void round(Session& s, sampler& draw_from, int most, Sink&& sink) {
      const int longest = loop_.longest(), count = s.position() + 1;
      const int end = std::min(count + std::min(most, std::max(per_call_, longest)), s.context() + 1);
      if (end - count < longest) return host_.round(s, draw_from, most, sink);
      if (!text_ || draw_from.options() != options_) begin(s, draw_from.options(), most);
      made_.clear();
      text_->run(end, [&](const emitted& e) { made_.push_back(e); });
      loop_.count(s.stats, text_->now(), made_);
      for (const emitted& e : made_) sink(e);
    }
    void finish(Session& s) {
      if constexpr (requires { host_.finish(s); }) host_.finish(s);
    }

   private:
    void begin(Session& s, const sampling& options, int most) {
      auto text = std::make_unique<text_type>(s, loop_.longest(), stops_);
      text->now().first = s.position() + 1, text->now().steps = most;
      {
        const auto open = text->loop.write();
        loop_.write(*text, options);
      }
      text_ = std::move(text), options_ = options;
    }

    typename Base::template on<Session> host_;
    loop_type loop_;
    int per_call_;
    std::unique_ptr<text_type> text_;
    sampling options_;
    std::vector<int> stops_;
    std::vector<emitted> made_;
  };
};

}  // namespace decoder
}  // namespace moeskip
