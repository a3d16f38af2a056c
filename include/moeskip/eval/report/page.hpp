// Parts of a page: figures, sections, tables.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "moeskip/eval/report/markup.hpp"

namespace moeskip::report {

/// `caption` and `body` are markup, `title` is text.
inline std::string figure(std::string_view title, std::string_view caption, std::string_view body, bool wide = false) {
  return text("<figure", wide ? " class=\"wide\"" : "", "><h3>", escape(title), "</h3><figcaption>", caption,
              "</figcaption>", body, "</figure>\n");
}
inline std::string section(std::string_view title, std::string_view prose, std::string_view figures) {
  return text("<section><h2>", escape(title), "</h2>\n<p>", prose, "</p>\n<div class=\"figures\">\n", figures,
              "</div></section>\n");
}
/// Cells are text; the first row is the head.
inline std::string table(const std::vector<std::vector<std::string>>& rows) {
  std::string out = "<table>";
  for (std::size_t r = 0; r < rows.size(); ++r) {
    out += "<tr>";
    for (const std::string& one : rows[r]) out += text(r ? "<td>" : "<th>", escape(one), r ? "</td>" : "</th>");
    out += "</tr>";
  }
  return out + "</table>";
}

}  // namespace moeskip::report
