// The chat template of a model's folder: a Jinja program that writes a conversation as one text. It is found and shown,
// and not run. Where transformers looks for it: chat_template.jinja, chat_template.json, then tokenizer_config.json.
// Opt-in: needs nlohmann-json.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "moeskip/formats/huggingface/folder.hpp"
#include "moeskip/formats/text.hpp"

namespace moeskip::huggingface {

struct chat_template {
  std::string where;    // "DIR/tokenizer_config.json: chat_template"
  std::string program;  // in Jinja, for a reader; of several, the one named "default", or else the first
};

namespace detail {

/// A string, or a list of {"name": …, "template": …}.
inline chat_template one_of(const json_at& field) {
  if (!field.value->as<json_value::array>()) return {field.where, field.string()};
  if (field.list().empty()) field.wrong("a template");
  json_at chosen = field[0];
  for (std::size_t i = 0; i < field.list().size(); ++i)
    if (field[i]["name"].string() == "default") chosen = field[i];
  return {chosen["template"].where, chosen["template"].string()};
}

}  // namespace detail

/// None where the folder has no template. Throws file_error where a file cannot be read.
inline std::optional<chat_template> find_chat_template(const std::filesystem::path& folder) {
  if (const auto path = folder / "chat_template.jinja"; std::filesystem::exists(path))
    return chat_template{path.string(), read_text(path)};
  for (const char* name : {"chat_template.json", "tokenizer_config.json"}) {
    const auto path = folder / name;
    if (!std::filesystem::exists(path)) continue;
    const json_value document = read_json(path);
    if (const json_at field = json_at{&document, path.string() + ": "}["chat_template"]) return detail::one_of(field);
  }
  return {};
}

/// For who looks for transformers' function of this name: always throws file_error, which says where the folder's
/// template stands, and what to do instead.
[[noreturn]] inline void apply_chat_template(const std::filesystem::path& folder) {
  const std::optional<chat_template> found = find_chat_template(folder);
  MOESKIP_CHECK(file_error, found, folder.string(), ": expected a chat template, got none in chat_template.jinja, ",
                "chat_template.json or tokenizer_config.json: the model may not be one for conversations");
  fail<file_error>(found->where, ": expected no chat template, got a Jinja program of ", found->program.size(),
                   " bytes, which is not run: read it, write the conversation's turns as it does, and encode what you "
                   "wrote with special_tokens::recognised, what others wrote with special_tokens::as_text");
}

}  // namespace moeskip::huggingface
