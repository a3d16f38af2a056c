// A session of another model, for one who decodes in a session and asks that model for advice (draft::small_model).
#pragma once

#include <memory>

#include "moeskip/decode/batch/merged_calls.hpp"

namespace moeskip {

/// In a batch, calls of the other model are merged with those that other sequences ask of it; alone, it is run by
/// itself. The session is the caller's until it lets go, which must be before the generation ends. It may hold another
/// text's tokens: prefill it first. Several at a time of the same model do not disturb each other.
template <class V, class B, class Other, class OtherB>
std::shared_ptr<session<Other, OtherB>> session_beside(session<V, B>& s, model<Other, OtherB>& other) {
  using merged = merged_calls<Other, OtherB>;
  batch_lanes* const lanes = s.lanes();
  if (!lanes) return std::make_shared<session<Other, OtherB>>(other);
  for (const auto& known : lanes->drafts())
    if (const auto* calls = dynamic_cast<const merged*>(known.get()))
      if (&calls->model() == &other && calls->has_free(s.slot())) return calls->session(s.slot());
  auto made = std::make_unique<merged>(other, *lanes, lanes->stats().drafts, true);
  auto mine = made->session(s.slot());
  lanes->add_draft(std::move(made));
  return mine;
}

}  // namespace moeskip
