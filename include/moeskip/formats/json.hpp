// JSON documents as values that know where they stand, so that whoever expects something else can say file and field.
// Read strictly: a name appears once in an object, nothing is nested deeper than 64, and nothing follows the document.
// Opt-in: needs nlohmann-json, of which only the parser of events is used.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include <nlohmann/json.hpp>

#include "moeskip/base/check.hpp"
#include "moeskip/formats/arrays.hpp"

namespace moeskip {

struct json_value {
  using array = std::vector<json_value>;
  using object = std::vector<std::pair<std::string, json_value>>;  // in the order of the file
  std::variant<std::nullptr_t, bool, std::int64_t, double, std::string, array, object> is = nullptr;

  template <class T> const T* as() const { return std::get_if<T>(&is); }
  /// nullptr where this is no object, or has no such name.
  const json_value* find(std::string_view name) const {
    if (const object* o = as<object>())
      for (const auto& [key, value] : *o)
        if (key == name) return &value;
    return nullptr;
  }
};

/// As it may stand in a message: short.
inline std::string json_text(const json_value& v) {
  if (v.as<std::nullptr_t>()) return "null";
  if (const bool* b = v.as<bool>()) return text(*b);
  if (const std::int64_t* i = v.as<std::int64_t>()) return text(*i);
  if (const double* d = v.as<double>()) return text(*d);
  if (const std::string* s = v.as<std::string>()) return in_quotes(*s);
  if (const json_value::array* a = v.as<json_value::array>()) return text("a list of ", a->size());
  return text("an object of ", v.as<json_value::object>()->size());
}

namespace detail {

/// Builds a json_value from the events of nlohmann's parser, whose names these functions have.
class json_builder {
 public:
  using json = nlohmann::json;
  static constexpr std::size_t deepest = 64;

  explicit json_builder(std::string path) : path_(std::move(path)) {}
  json_value root;

  bool null() { return add(json_value{nullptr}); }
  bool boolean(bool value) { return add(json_value{value}); }
  bool number_integer(std::int64_t value) { return add(json_value{value}); }
  bool number_unsigned(std::uint64_t value) {
    if (value > std::uint64_t(std::numeric_limits<std::int64_t>::max())) return add(json_value{double(value)});
    return add(json_value{std::int64_t(value)});
  }
  bool number_float(double value, const std::string&) { return add(json_value{value}); }
  bool string(std::string& value) { return add(json_value{std::move(value)}); }
  bool binary(json::binary_t&) { return false; }
  bool start_object(std::size_t) { return open(json_value{json_value::object{}}); }
  bool start_array(std::size_t) { return open(json_value{json_value::array{}}); }
  bool key(std::string& name) { return key_ = std::move(name), true; }
  bool end_array() { return open_.pop_back(), true; }
  bool end_object() {
    std::vector<std::string_view> names;
    for (const auto& [name, value] : *open_.back()->as<json_value::object>()) names.push_back(name);
    std::sort(names.begin(), names.end());
    const auto twice = std::adjacent_find(names.begin(), names.end());
    MOESKIP_CHECK(file_error, twice == names.end(), path_, ": the name ", in_quotes(*twice),
                  " appears twice in an object");
    return open_.pop_back(), true;
  }
  bool parse_error(std::size_t position, const std::string&, const json::exception& problem) {
    std::string_view reason = problem.what();  // it quotes what it read last, which may be long
    if (const std::size_t start = reason.find("syntax error"); start != reason.npos) reason.remove_prefix(start);
    fail<file_error>(path_, ": expected JSON, got something else at byte ", position, ": ", reason.substr(0, 200));
  }

 private:
  bool add(json_value value) { return place(std::move(value)), true; }
  bool open(json_value value) {
    MOESKIP_CHECK(file_error, open_.size() < deepest, path_, ": expected values nested at most ", deepest,
                  " deep, got more");
    open_.push_back(place(std::move(value)));
    return true;
  }
  json_value* place(json_value value) {
    if (open_.empty()) return &(root = std::move(value));
    if (auto* list = std::get_if<json_value::array>(&open_.back()->is)) return &list->emplace_back(std::move(value));
    auto& members = std::get<json_value::object>(open_.back()->is);
    return &members.emplace_back(std::move(key_), std::move(value)).second;
  }

  std::string path_, key_;
  std::vector<json_value*> open_;  // from the root down; a container does not move while one inside it is open
};

}  // namespace detail

/// The document in `bytes`; `path` is for messages. Throws file_error.
inline json_value parse_json(std::span<const std::byte> bytes, const std::string& path) {
  const char* const begin = reinterpret_cast<const char*>(bytes.data());
  const char* const end = begin + bytes.size();
  MOESKIP_CHECK(file_error, !bytes.empty(), path, ": expected JSON, got an empty file");
  const char* const zero = std::find(begin, end, '\0');  // the parser would take it for the end
  MOESKIP_CHECK(file_error, zero == end, path, ": expected JSON, got a zero byte at byte ", zero - begin);
  detail::json_builder builder(path);
  nlohmann::json::sax_parse(begin, end, &builder);
  return std::move(builder.root);
}

/// A value and where it stands: "DIR/config.json: rope_parameters.rope_theta". Throws file_error that says so.
struct json_at {
  const json_value* value = nullptr;  // null: there is none
  std::string where;

  explicit operator bool() const { return value && !value->as<std::nullptr_t>(); }
  json_at operator[](std::string_view name) const {
    return {value ? value->find(name) : nullptr, text(where, where.ends_with(": ") ? "" : ".", name)};
  }
  json_at operator[](std::size_t i) const { return {&list()[i], text(where, "[", i, "]")}; }

  const std::string& string() const { return *expect<std::string>("a string"); }
  bool boolean() const { return *expect<bool>("true or false"); }
  const json_value::array& list() const { return *expect<json_value::array>("a list"); }
  const json_value::object& object() const { return *expect<json_value::object>("an object"); }
  std::int64_t integer(std::int64_t low, std::int64_t high) const {
    const std::int64_t* i = value ? value->as<std::int64_t>() : nullptr;
    if (!i || *i < low || *i > high) wrong(text("a whole number from ", low, " to ", high));
    return *i;
  }
  double number() const {
    if (const std::int64_t* i = value ? value->as<std::int64_t>() : nullptr) return double(*i);
    return *expect<double>("a number");
  }
  [[noreturn]] void wrong(std::string_view expected) const {
    fail<file_error>(where, ": expected ", expected, ", got ", value ? json_text(*value) : "nothing");
  }

 private:
  template <class T> const T* expect(std::string_view what) const {
    const T* found = value ? value->as<T>() : nullptr;
    if (!found) wrong(what);
    return found;
  }
};

}  // namespace moeskip
