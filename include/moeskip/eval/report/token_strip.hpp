// A generated text in which colour says after how many layers each token was settled.
#pragma once

#include <string>
#include <vector>

#include "moeskip/eval/report/data.hpp"
#include "moeskip/eval/report/markup.hpp"
#include "moeskip/eval/report/style.hpp"

namespace moeskip::report {

/// "■ 2 ■ 4 …" for the exits that occur.
inline std::string depth_legend(const std::vector<int>& exits, int layers,
                                std::string_view before = "left after layer") {
  std::string out = text("<div class=\"legend\"><span>", escape(before), "</span>");
  for (const int e : exits) out += text("<span><i style=\"--c:", depth_colour(e, layers), "\"></i>", e, "</span>");
  return out + "</div>";
}

/// Tokens of the same kind that follow each other share a span.
inline std::string token_strip(const decoded_text& t, int layers) {
  std::string out = text("<pre><span class=\"p\">", escape(t.prompt), "</span>"), run;
  const auto flush = [&](const emitted& e) {
    if (run.empty()) return;
    const std::string_view how = e.drafted ? "drafted after layer " : "settled after layer ";
    out += text("<span class=\"t",
                e.drafted                ? " d"
                : e.exit_layer == layers ? " full"
                                         : "",
                "\" style=\"--c:", depth_colour(e.exit_layer, layers), "\" title=\"", how, e.exit_layer,
                e.drafted ? ", accepted" : "", "\">", escape(run), "</span>");
    run.clear();
  };
  for (std::size_t i = 0; i < t.tokens.size(); ++i) {
    const emitted& e = t.tokens[i];
    if (i && (t.tokens[i - 1].exit_layer != e.exit_layer || t.tokens[i - 1].drafted != e.drafted))
      flush(t.tokens[i - 1]);
    run += t.pieces[i];
  }
  if (!t.tokens.empty()) flush(t.tokens.back());
  return out + "</pre>";
}

}  // namespace moeskip::report
