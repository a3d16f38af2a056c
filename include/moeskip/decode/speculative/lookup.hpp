// Prompt lookup: the last n tokens are searched for earlier in the text, and what followed them there is proposed. The
// longest match wins, and the latest among equals. Nothing of a model runs, so a draft costs next to nothing where a
// text repeats itself: code, summaries, loops.           Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding
#pragma once

#include <algorithm>
#include <limits>
#include <span>
#include <string_view>
#include <vector>

#include "moeskip/decode/speculative/full_pass.hpp"

namespace moeskip::draft {

struct lookup {
  static constexpr std::string_view name = "lookup";
  int longest_match = 3;  // tokens
  int shortest_match = 1;

  constexpr std::string_view problem() const {
    if (shortest_match < 1) return "lookup.shortest_match must be at least 1";
    if (longest_match < shortest_match) return "lookup.longest_match must be at least lookup.shortest_match";
    return {};
  }

  /// Where in `text` the token stands that should follow its last one: behind the latest of the longest earlier
  /// occurrences of its end. 0: the text does not repeat itself.
  std::size_t continuation(std::span<const int> text) const {
    std::size_t best = 0, behind = 0;
    const std::size_t longest = std::size_t(longest_match), size = text.size();
    for (std::size_t end = size; end-- > 1 && best < longest;) {
      std::size_t n = 0;
      while (n < std::min(longest, end) && text[end - 1 - n] == text[size - 1 - n]) ++n;
      if (n > best) best = n, behind = end;
    }
    return best >= std::size_t(shortest_match) ? behind : 0;
  }

  template <class Session> class on;
};

template <class Session> class lookup::on {
  using T = typename Session::T;

 public:
  /// Throws config_error for lengths that mean nothing.
  on(const lookup& options, Session& s) : options_(options) {
    MOESKIP_CHECK(config_error, options.problem().empty(), options.problem(), ", got matches of ",
                  options.shortest_match, " to ", options.longest_match, " tokens");
    text_.reserve(std::size_t(s.context()) + 1);
  }
  static int exit_layer() { return 0; }

  void begin(Session& s, int) { text_.assign(s.tokens().begin(), s.tokens().end() - 1), found_ = 0; }
  /// A match is followed for the rest of the round. The logits (V) leave the proposed token no alternative.
  bool next(Session&, int token, vec<T> logits) {
    text_.push_back(token);
    const bool follows = found_ > 0 && text_[found_] == token;
    found_ = follows ? found_ + 1 : options_.continuation(text_);
    if (found_ == 0) return false;
    std::fill(logits.begin(), logits.end(), -std::numeric_limits<T>::infinity());
    logits[text_[found_]] = T{};
    return true;
  }
  void verify(Session& s, std::span<const int> tokens, mat<T> logits) { full_pass(s, tokens, logits); }

 private:
  lookup options_;
  std::vector<int> text_;  // the session's tokens and those of the round
  std::size_t found_ = 0;  // where in it the proposed token stands; 0: nowhere
};

}  // namespace moeskip::draft
