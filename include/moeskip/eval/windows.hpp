// A text cut into windows without overlap, some of them run at a time: how every evaluation reads a text.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "moeskip/memory/kv_cache.hpp"
#include "moeskip/model/model.hpp"
#include "moeskip/train/loss.hpp"

namespace moeskip {

/// Windows of `length` tokens, run `sequences` at a time; at most max_windows of them, evenly spread (0: all).
struct window_options {
  int length = 256;
  int sequences = 8;
  int max_windows = 0;
};

/// A group of windows as the model takes them.
struct window_group {
  int sequences, length;
  vec<const int> inputs, targets;  // (N), N = sequences · length
  token_rows rows;                 // (N)
};

/// Calls visit(group) for each; returns how many windows there were. What visit takes from memory goes after it.
/// Throws config_error where the options do not fit the text or the context.
template <class Visit>
index_t for_windows(std::span<const int> tokens, int context, const window_options& o, arena& memory, Visit&& visit) {
  MOESKIP_CHECK(config_error, o.length >= 1 && o.length <= context, "windows must have from 1 token to the context of ",
                context, ", got ", o.length);
  MOESKIP_CHECK(config_error, o.sequences >= 1, "at least one window must be run at a time, got ", o.sequences);
  const index_t available = (index_t(tokens.size()) - 1) / o.length;
  MOESKIP_CHECK(config_error, available >= 1, "the text to evaluate is too short: expected at least ", o.length + 1,
                " tokens, got ", tokens.size());
  const index_t windows = o.max_windows > 0 ? std::min<index_t>(o.max_windows, available) : available;
  for (index_t first = 0; first < windows; first += o.sequences) {
    const auto scope = memory.scope();
    const int count = int(std::min<index_t>(o.sequences, windows - first));
    const index_t N = index_t(count) * o.length;
    vec<int> inputs = memory.of_host().take<int>(N), targets = memory.of_host().take<int>(N);
    for (index_t n = 0; n < N; ++n) {
      const index_t window = (first + n / o.length) * available / windows;
      const std::size_t at = std::size_t(window * o.length + n % o.length);
      inputs[n] = tokens[at], targets[n] = tokens[at + 1];
    }
    token_rows rows = batch_rows(count, o.length, memory.of_host());
    rows.token = inputs;
    visit(window_group{count, o.length, inputs, targets, rows});
  }
  return windows;
}

/// The same windows one by one, each with the token behind it: `length` inputs and as many targets. At most `most` of
/// them, evenly spread (0: all); none where the text is too short.
inline std::vector<std::vector<int>> cut_windows(std::span<const int> tokens, int length, int most = 0) {
  std::vector<std::vector<int>> out;
  const std::size_t size = std::size_t(length), available = tokens.size() < 2 ? 0 : (tokens.size() - 1) / size;
  const std::size_t count = most > 0 ? std::min(std::size_t(most), available) : available;
  for (std::size_t w = 0; w < count; ++w) {
    const auto part = tokens.subspan(w * available / count * size, size + 1);
    out.emplace_back(part.begin(), part.end());
  }
  return out;
}

}  // namespace moeskip
