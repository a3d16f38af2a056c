// Multiple-choice questions from a file of JSON objects, one a line:
//   {"context": "The capital of France is", "choices": [" Paris", " Rome"], "answer": 0}
// Opt-in: brings nlohmann-json.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "moeskip/eval/choices.hpp"
#include "moeskip/formats/text.hpp"

namespace moeskip {

/// encode(text): tokens. longest: tokens that the model reads in one pass, one more than its context. Throws file_error
/// that names line and field for what is no such question or does not fit, and for a file without any.
template <class Encode>
std::vector<choice_question> read_choices(const std::filesystem::path& path, std::size_t longest, Encode&& encode) {
  const std::string content = read_text(path), name = path.string();
  std::vector<choice_question> out;
  int number = 0;
  for (std::size_t start = 0; start < content.size(); ++start) {
    const std::size_t end = std::min(content.find('\n', start), content.size());
    const std::string line = content.substr(start, end - start), place = text(name, ":", ++number, ": ");
    start = end;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const auto json = nlohmann::json::parse(line, nullptr, false);
    MOESKIP_CHECK(file_error, json.is_object(), place, "expected a question (a JSON object), got ",
                  json.is_discarded() ? "no JSON" : json.type_name());
    const auto words = [&](const std::string& field, const nlohmann::json* value) {
      MOESKIP_CHECK(file_error, value && value->is_string() && !value->get_ref<const std::string&>().empty(), place,
                    field, ": expected a text that is not empty, got ",
                    !value               ? "nothing"
                    : value->is_string() ? "none"
                                         : value->type_name());
      return encode(value->get_ref<const std::string&>());
    };
    const auto member = [&](const char* field) {
      const auto found = json.find(field);
      return found == json.end() ? nullptr : &*found;
    };
    choice_question q;
    q.context = words("context", member("context"));
    const nlohmann::json *choices = member("choices"), *answer = member("answer");
    MOESKIP_CHECK(file_error, choices && choices->is_array() && choices->size() >= 2, place,
                  "choices: expected a list of at least two texts, got ",
                  !choices              ? std::string("nothing")
                  : choices->is_array() ? text(choices->size())
                                        : choices->type_name());
    for (std::size_t c = 0; c < choices->size(); ++c) {
      q.choices.push_back(words(text("choices[", c, "]"), &(*choices)[c]));
      const std::size_t all = q.context.size() + q.choices.back().size();
      MOESKIP_CHECK(file_error, all <= longest, place, "choices[", c, "]: expected at most ", longest,
                    " tokens with its context, got ", all);
    }
    MOESKIP_CHECK(file_error, answer && answer->is_number_integer(), place,
                  "answer: expected the number of the right choice, got ", answer ? answer->type_name() : "nothing");
    const auto right = answer->get<long long>();
    MOESKIP_CHECK(file_error, right >= 0 && right < static_cast<long long>(q.choices.size()), place,
                  "answer: expected from 0 to ", q.choices.size() - 1, ", got ", right);
    q.answer = int(right);
    out.push_back(std::move(q));
  }
  MOESKIP_CHECK(file_error, !out.empty(), name, ": expected questions, one a line, got none");
  return out;
}

}  // namespace moeskip
