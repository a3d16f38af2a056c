// config.json of a Hugging Face folder, read field by field. What differs from what a preset expects is collected, so
// that one message names all of it.
#pragma once

#include <concepts>
#include <filesystem>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "moeskip/formats/huggingface/folder.hpp"

namespace moeskip::huggingface {

class config_file {
 public:
  using names = std::initializer_list<std::string_view>;  // of one field: the first that is there counts

  /// Throws file_error unless the folder has a config.json that is a JSON object.
  explicit config_file(const std::filesystem::path& folder)
      : config_file(read_json(folder / "config.json"), (folder / "config.json").string()) {}
  config_file(json_value document, std::string path) : path_(std::move(path)), document_(std::move(document)) {
    json_at{&document_, path_}.object();
  }

  const std::string& path() const { return path_; }
  /// The field, or none; its first name is that of messages.
  json_at at(names fields) const {
    for (const std::string_view name : fields)
      if (const json_value* found = document_.find(name)) return {found, std::string(name)};
    return {nullptr, std::string(*fields.begin())};
  }
  json_at at(std::string_view field) const { return at({field}); }

  /// "LlamaForCausalLM", or what model_type says where there is no such list; "" where nothing says it.
  std::string architecture() const {
    const json_value* list = document_.find("architectures");
    if (const auto* all = list ? list->as<json_value::array>() : nullptr; all && !all->empty())
      if (const std::string* first = all->front().as<std::string>()) return *first;
    const json_value* type = document_.find("model_type");
    const std::string* name = type ? type->as<std::string>() : nullptr;
    return name ? *name : "";
  }

  /// A whole number from `least` to 2^30; `otherwise` where the field is not there, or null.
  int count(names fields, std::optional<int> otherwise = {}, int least = 1) {
    const json_at field = at(fields);
    if (!field && otherwise) return *otherwise;
    const std::int64_t* value = field ? field.value->as<std::int64_t>() : nullptr;
    if (value && *value >= least && *value <= 1 << 30) return int(*value);
    differs(field, text("a whole number of ", least, " or more"));
    return 1;
  }
  int count(std::string_view field, std::optional<int> otherwise = {}, int least = 1) {
    return count({field}, otherwise, least);
  }
  float number(const json_at& field, std::optional<float> otherwise = {}) {
    if (!field && otherwise) return *otherwise;
    if (const double* d = field ? field.value->as<double>() : nullptr) return float(*d);
    if (const std::int64_t* i = field ? field.value->as<std::int64_t>() : nullptr) return float(*i);
    differs(field, "a number");
    return 1;
  }
  float number(std::string_view field, std::optional<float> otherwise = {}) { return number(at(field), otherwise); }
  bool flag(std::string_view name, bool otherwise) {
    const json_at field = at(name);
    if (!field) return otherwise;
    if (const bool* value = field.value->as<bool>()) return *value;
    differs(field, "true or false");
    return otherwise;
  }

  /// The field must have this value; `otherwise` is what it has where it is not there.
  void expect(names fields, std::int64_t value, std::optional<std::int64_t> otherwise = {}) {
    const json_at field = at(fields);
    if (!field && otherwise == value) return;
    const std::int64_t* got = field ? field.value->as<std::int64_t>() : nullptr;
    if (!got || *got != value) differs(field, text(value));
  }
  template <std::same_as<bool> T> void expect(std::string_view name, T value, T otherwise) {  // no pointers
    const json_at field = at(name);
    const bool* got = field ? field.value->as<bool>() : nullptr;
    if (field ? !got || *got != value : otherwise != value) differs(field, text(value));
  }
  void expect(std::string_view name, std::string_view value, std::string_view otherwise = {}) {
    const json_at field = at(name);
    const std::string* got = field ? field.value->as<std::string>() : nullptr;
    if (field ? !got || *got != value : otherwise != value) differs(field, in_quotes(value));
  }
  /// The first of `architectures`, where there is such a list, must be this one.
  void expect_architecture(std::string_view name) {
    const json_at list = at("architectures");
    if (list && architecture() != name)
      problem(text("architectures: expected ", name, ", got ", in_quotes(architecture())));
  }
  /// The field must be missing, null, or an empty list.
  void expect_none(std::string_view name) {
    const json_at field = at(name);
    const auto* list = field ? field.value->as<json_value::array>() : nullptr;
    if (field && !(list && list->empty())) differs(field, "null");
  }

  /// The field, where it is there, must be a list of this value alone.
  void expect_each(std::string_view name, std::string_view value) {
    const json_at field = at(name);
    const auto* list = field ? field.value->as<json_value::array>() : nullptr;
    if (field && !list) return differs(field, text("a list of ", in_quotes(value)));
    for (std::size_t i = 0; list && i < list->size(); ++i)
      if (const std::string* got = (*list)[i].as<std::string>(); !got || *got != value)
        return differs(field[i], in_quotes(value));
  }

  /// Notes that a field is not what it should be.
  void differs(const json_at& field, std::string_view expected) {
    problem(text(field.where, ": expected ", expected, ", got ", field.value ? json_text(*field.value) : "nothing"));
  }
  void problem(std::string_view sentence) { problems_ += text(problems_.empty() ? "" : "; ", sentence); }
  /// Throws file_error that names everything noted.
  void finish(std::string_view preset) const {
    MOESKIP_CHECK(file_error, problems_.empty(), path_, ": not what presets::", preset, " expects: ", problems_);
  }

 private:
  std::string path_;
  json_value document_;
  std::string problems_;
};

}  // namespace moeskip::huggingface
