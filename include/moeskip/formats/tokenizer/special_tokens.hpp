// Special tokens that stand in a text by their names: "<|im_start|>", "</s>". Whoever writes a conversation's turns
// means them; in text that others wrote they are a way to forge a turn.
#pragma once

#include <cstddef>
#include <string_view>
#include <vector>

namespace moeskip::tokenizer {

enum class special_tokens { recognised, as_text };

/// Cuts text at those of `tokens` (content, id; longer ones first) that are wanted, leftmost first, then longest:
/// appends their ids to out, and calls rest(part) for each part between them that is not empty.
template <class Token, class Wanted, class Rest> void cut_at(std::vector<int>& out, std::string_view text,
                                                             const std::vector<Token>& tokens, Wanted&& wanted,
                                                             Rest&& rest) {
  std::vector<std::size_t> next(tokens.size());  // where each appears next
  for (std::size_t i = 0; i < tokens.size(); ++i)
    next[i] = wanted(tokens[i]) ? text.find(tokens[i].content) : text.npos;
  std::size_t begin = 0;
  while (true) {
    std::size_t best = tokens.size();
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      if (next[i] < begin) next[i] = text.find(tokens[i].content, begin);
      if (next[i] != text.npos && (best == tokens.size() || next[i] < next[best])) best = i;
    }
    const std::size_t end = best == tokens.size() ? text.size() : next[best];
    if (end > begin) rest(text.substr(begin, end - begin));
    if (best == tokens.size()) return;
    out.push_back(tokens[best].id);
    begin = end + tokens[best].content.size();
  }
}

}  // namespace moeskip::tokenizer
