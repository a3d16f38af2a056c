// Pieces of HTML and SVG as text: escaping, numbers, and a picture that is built shape by shape. Colours come from the
// page's style (style.hpp), so that pictures follow light and dark.
#pragma once

#include <cmath>
#include <cstdio>
#include <string>
#include <string_view>

#include "moeskip/base/check.hpp"
#include "moeskip/formats/utf8.hpp"

namespace moeskip::report {

/// Text as it may stand between tags or in a quoted attribute. Control characters but for line ends and tabs, and bytes
/// that are not UTF-8, become U+FFFD.
inline std::string escape(std::string_view raw) {
  utf8_stream whole;
  std::string out;
  for (const char c : whole.push(raw) + whole.flush()) {
    if (c == '&') out += "&amp;";
    else if (c == '<') out += "&lt;";
    else if (c == '>') out += "&gt;";
    else if (c == '"') out += "&quot;";
    else if ((static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t') || c == 0x7F)
      out += replacement_character;
    else out += c;
  }
  return out;
}

/// "12.50"; "–" for what is no number.
inline std::string fixed(double value, int digits) {
  if (!std::isfinite(value)) return "–";
  char out[400];
  std::snprintf(out, sizeof out, "%.*f", digits, value);
  return std::string_view(out).find_first_not_of("-0.") == std::string_view::npos && out[0] == '-' ? out + 1 : out;
}
/// A place in a picture, to a tenth of a pixel.
inline std::string at(double value) {
  std::string out = fixed(std::isfinite(value) ? value : 0, 1);
  if (out.ends_with(".0")) out.resize(out.size() - 2);
  return out;
}
/// "10.2 M"
inline std::string short_number(double value) {
  const char* units[] = {"", " k", " M", " G", " T"};
  int unit = 0;
  while (std::abs(value) >= 1000 && unit < 4) value /= 1000, ++unit;
  return fixed(value, unit == 0 || std::abs(value) >= 100 ? 0 : 1) + units[unit];
}

/// An inline picture. `attributes` go into the tag as they are; what is said of a shape appears when it is pointed at.
class svg {
 public:
  svg(double width, double height, std::string_view what) {
    out_ = text("<svg viewBox=\"0 0 ", at(width), " ", at(height), "\" width=\"", at(width), "\" height=\"", at(height),
                "\" role=\"img\" aria-label=\"", escape(what), "\">");
  }
  svg& rect(double x, double y, double w, double h, std::string_view attributes, std::string_view said = {}) {
    return shape(
        text("rect x=\"", at(x), "\" y=\"", at(y), "\" width=\"", at(w), "\" height=\"", at(h), "\" ", attributes),
        "rect", said);
  }
  svg& line(double x1, double y1, double x2, double y2, std::string_view attributes) {
    return shape(
        text("line x1=\"", at(x1), "\" y1=\"", at(y1), "\" x2=\"", at(x2), "\" y2=\"", at(y2), "\" ", attributes),
        "line", {});
  }
  svg& circle(double x, double y, double r, std::string_view attributes, std::string_view said = {}) {
    return shape(text("circle cx=\"", at(x), "\" cy=\"", at(y), "\" r=\"", at(r), "\" ", attributes), "circle", said);
  }
  svg& path(std::string_view d, std::string_view attributes) {
    return shape(text("path d=\"", d, "\" ", attributes), "path", {});
  }
  svg& write(double x, double y, std::string_view words, std::string_view attributes = {}) {
    out_ += text("<text x=\"", at(x), "\" y=\"", at(y), "\" ", attributes, ">", escape(words), "</text>");
    return *this;
  }
  std::string done() const { return out_ + "</svg>"; }

 private:
  svg& shape(const std::string& tag, std::string_view name, std::string_view said) {
    if (said.empty()) out_ += text("<", tag, "/>");
    else out_ += text("<", tag, "><title>", escape(said), "</title></", name, ">");
    return *this;
  }
  std::string out_;
};

}  // namespace moeskip::report
