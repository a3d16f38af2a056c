// Experts and words: which expert works on each token of a sentence, and which tokens an expert sees more than others
// do.
#pragma once

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "moeskip/eval/report/data.hpp"
#include "moeskip/eval/report/page.hpp"

namespace moeskip::report {

inline std::string token_name(const report_data& d, int id) {
  return id >= 0 && std::size_t(id) < d.token_names.size() ? d.token_names[std::size_t(id)] : text(id);
}

/// A hue for each expert; neighbours are far apart.
inline std::string expert_colour(int e, int experts) {
  int step = std::max(1, experts * 3 / 8);
  while (experts > 1 && std::gcd(step, experts) != 1) ++step;
  return text("hsl(", e * step % std::max(1, experts) * 360 / std::max(1, experts), " 46% 58%)");
}

/// Share of a token's choices in a layer that fall on an expert, over all of the text.
inline double share_of(const expert_counts& c, int token, int e) {
  const auto& [even, odd] = c.ids;
  const long long n = even.choices(token) + odd.choices(token);
  return n ? double(even.count(token, e) + odd.count(token, e)) / double(n) : 0;
}

/// Tokens across, layers down, a cell in the colour of the expert that was chosen first.
inline std::string paths(const report_data& d) {
  std::size_t n = 0;
  for (const expert_counts& c : d.experts) n = std::max(n, c.first_tokens.size());
  if (n == 0) return {};
  const double wide = std::min(24.0, 980.0 / double(n)), high = 18, left = 44, top = 22;
  svg out(left + double(n) * wide + 2, top + double(d.experts.size()) * high + 2,
          "the expert of each token in each layer");
  out.write(0, 13, "layer", "class=\"m\"");
  for (std::size_t i = 0; i < d.experts.front().first_tokens.size(); ++i)
    out.write(left + (double(i) + 0.5) * wide, 13, token_name(d, d.experts.front().first_tokens[i]),
              "text-anchor=\"middle\" class=\"code\"");
  for (std::size_t r = 0; r < d.experts.size(); ++r) {
    const expert_counts& c = d.experts[r];
    const std::size_t K = c.first_choices.size() / std::max<std::size_t>(1, c.first_tokens.size());
    out.write(left - 8, top + (double(r) + 0.5) * high + 4, text(c.layer + 1), "text-anchor=\"end\" class=\"m\"");
    for (std::size_t i = 0; i < c.first_tokens.size(); ++i) {
      std::string all;
      for (std::size_t k = 0; k < K; ++k) all += text(k ? ", " : "", c.first_choices[i * K + k]);
      const int token = c.first_tokens[i], e = c.first_choices[i * K];
      const double usual = share_of(c, token, e);
      const std::string fill = text("fill=\"", expert_colour(e, c.within.rows()), "\" fill-opacity=\"",
                                    fixed(0.12 + 0.88 * std::min(1.0, 1.5 * usual), 2), "\"");
      out.rect(left + double(i) * wide, top + double(r) * high, wide - 1, high - 1, fill,
               text("layer ", c.layer + 1, ", “", token_name(d, c.first_tokens[i]), "”: expert ", all, ", as for ",
                    fixed(100 * usual, 0), " % of these tokens"));
    }
  }
  return figure(
      "Who works on what",
      "A piece of the text across, layers down; a colour is an expert of its layer (the first where several are "
      "chosen). Strong: the expert that this token usually gets, whatever stands around it. Faint: chosen by context.",
      out.done(), true);
}

/// Of one layer: the tokens that each expert gets the largest share of.
inline std::string claims_of(const report_data& d, const expert_counts& c) {
  constexpr long long seen_enough = 30;
  constexpr std::size_t shown = 7;
  struct claim {
    int token;
    double share;
  };
  const auto& [even, odd] = c.ids;
  std::string out = text("<h3>layer ", c.layer + 1, "</h3><div class=\"chips\">");
  for (int e = 0; e < even.experts(); ++e) {
    std::vector<claim> claims;
    for (int t = 0; t < even.vocab(); ++t)
      if (even.choices(t) + odd.choices(t) >= seen_enough) claims.push_back({t, share_of(c, t, e)});
    std::stable_sort(claims.begin(), claims.end(), [](const claim& a, const claim& b) { return a.share > b.share; });
    if (claims.size() > shown) claims.resize(shown);
    out += text("<div><b>", e, "</b>");
    for (const claim& one : claims)
      if (one.share > 2.0 / even.experts())
        out += text("<code title=\"", fixed(100 * one.share, 0), " % of them\">", escape(token_name(d, one.token)),
                    "</code>");
    out += "</div>";
  }
  return out + "</div>";
}

/// Of the first, a middle and the last MoE layer.
inline std::string claims(const report_data& d) {
  if (d.experts.empty()) return {};
  std::vector<std::size_t> layers{0, d.experts.size() / 2, d.experts.size() - 1};
  layers.erase(std::unique(layers.begin(), layers.end()), layers.end());
  std::string body;
  for (const std::size_t l : layers) body += claims_of(d, d.experts[l]);
  return figure("What experts see",
                "For each expert, the tokens that it gets the largest share of: at least twice what chance would give "
                "it, and seen "
                "often enough. Point at one to read the share.",
                body, true);
}

}  // namespace moeskip::report
