// Byte-level BPE tokenizers as tokenizer.json describes them: those of GPT-2, GPT-NeoX and OLMoE, Llama 3, Qwen 2 and
// 3. Ids are those of the Python package `tokenizers`, without what its post-processors add: begin a text with bos
// yourself. Opt-in: needs nlohmann-json.
//
//   const ms::tokenizer::byte_level words("OLMoE-1B-7B-0924/tokenizer.json");
//   std::vector<int> ids = words.encode("Once upon a time");
#pragma once

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "moeskip/base/check.hpp"
#include "moeskip/formats/huggingface/folder.hpp"
#include "moeskip/formats/json.hpp"
#include "moeskip/formats/tokenizer/byte_level_alphabet.hpp"
#include "moeskip/formats/tokenizer/byte_pairs.hpp"
#include "moeskip/formats/tokenizer/pre_tokenizer.hpp"
#include "moeskip/formats/tokenizer/special_tokens.hpp"
#include "moeskip/formats/tokenizer/unicode.hpp"
#include "moeskip/formats/utf8.hpp"

namespace moeskip::tokenizer {

class byte_level {
 public:
  /// Reads a tokenizer.json, or the one in a folder. Throws file_error that names the field of what it does not know:
  /// another model or pattern, a normaliser other than NFC, added tokens that take spaces with them.
  explicit byte_level(std::filesystem::path path) {
    if (std::filesystem::is_directory(path)) path /= "tokenizer.json";
    const json_value document = huggingface::read_json(path);
    *this = byte_level(document, path.string());
  }
  byte_level(const json_value& document, const std::string& path) {
    const json_at root{&document, path + ": "};
    root.object();
    read_normalizer(root["normalizer"]);
    read_pre_tokenizer(root["pre_tokenizer"]);
    read_model(root["model"]);
    if (root["added_tokens"]) read_added(root["added_tokens"]);
  }

  /// One more than the largest id.
  int vocab() const { return tokens_.empty() ? 0 : tokens_.back().first + 1; }
  /// The id of a token as its text is: "<|endoftext|>", " the".
  std::optional<int> id(std::string_view token) const {
    for (const added& a : added_)
      if (a.content == token) return a.id;
    const auto found = ids_.find(std::string(token));
    return found == ids_.end() ? std::nullopt : std::optional(found->second);
  }
  bool special(int id) const {
    return std::ranges::any_of(added_, [&](const added& a) { return a.id == id && a.special; });
  }

  /// The ids of a text. Added tokens that stand in it are recognised; special ones as `special` says, since text that
  /// others write may hold them. Throws config_error where the text is not UTF-8.
  std::vector<int> encode(std::string_view text, special_tokens special = special_tokens::recognised) const {
    const std::size_t wrong = utf8_error_offset(text);
    MOESKIP_CHECK(config_error, wrong == text.size(), "tokenizer: expected UTF-8, got something else at byte ", wrong);
    std::vector<int> out;
    const auto found = [&](bool normalized) {  // which are looked for before normalising, and which after
      return [normalized, special](const added& a) {
        return a.normalized == normalized && (!a.special || special == special_tokens::recognised);
      };
    };
    cut_at(out, text, added_, found(false), [&](std::string_view part) {
      const std::string normal = nfc_ ? to_nfc(part) : std::string(part);
      cut_at(out, normal, added_, found(true), [&](std::string_view words) { encode_words(out, words); });
    });
    return out;
  }

  /// The bytes of ids, which need not be UTF-8. Throws config_error at an id that is no token's.
  std::string decode(std::span<const int> ids) const {
    std::string out;
    for (const int id : ids) out += bytes(id);
    return out;
  }
  const std::string& bytes(int id) const {
    const std::size_t at = place(id);
    MOESKIP_CHECK(config_error, holds(at, id), "tokenizer: expected ids of tokens, got ", id);
    return tokens_[at].second;
  }

  /// Decodes token by token into text that can be printed at once (formats/utf8.hpp).
  class stream {
   public:
    explicit stream(const byte_level& words) : words_(&words) {}
    std::string push(int id) { return utf8_.push(words_->bytes(id)); }
    std::string flush() { return utf8_.flush(); }

   private:
    const byte_level* words_;
    utf8_stream utf8_;
  };

 private:
  struct added {
    std::string content;
    int id;
    bool normalized, special;
  };

  /// Where in tokens_ an id stands or would stand: usually there are no gaps, and it is its own place.
  std::size_t place(int id) const {
    if (id >= 0 && holds(std::size_t(id), id)) return std::size_t(id);
    const auto smaller = [](const auto& token, int value) { return token.first < value; };
    return std::size_t(std::lower_bound(tokens_.begin(), tokens_.end(), id, smaller) - tokens_.begin());
  }
  bool holds(std::size_t at, int id) const { return at < tokens_.size() && tokens_[at].first == id; }

  static void expect_absent(const json_at& field) {
    if (field) field.wrong("null");
  }
  static bool flag(const json_at& field, bool otherwise) { return field ? field.boolean() : otherwise; }
  static void expect_flag(const json_at& field, bool value, bool otherwise) {
    if (flag(field, otherwise) != value) field.wrong(text(value));
  }

  void read_normalizer(const json_at& n) {
    if (!n) return;
    if (n["type"].string() == "Sequence") {
      for (std::size_t i = 0; i < n["normalizers"].list().size(); ++i) read_normalizer(n["normalizers"][i]);
      return;
    }
    if (n["type"].string() != "NFC") n["type"].wrong("\"NFC\"");
    nfc_ = true;
  }

  /// ByteLevel with its own pattern, or a Split by one of the known ones and then ByteLevel without.
  void read_pre_tokenizer(const json_at& p) {
    if (p["type"].string() == "ByteLevel") return read_byte_level(p, true);
    if (p["type"].string() != "Sequence") p["type"].wrong("\"ByteLevel\" or \"Sequence\"");
    const json_at steps = p["pretokenizers"];
    if (steps.list().size() != 2) steps.wrong("a list of 2, Split and ByteLevel");
    const json_at split = steps[0], pattern = split["pattern"]["Regex"];
    if (split["type"].string() != "Split") split["type"].wrong("\"Split\"");
    if (split["behavior"].string() != "Isolated") split["behavior"].wrong("\"Isolated\"");
    expect_flag(split["invert"], false, false);
    const auto known = std::ranges::find(pre_tokenizers, pattern.string(), &pre_tokenizer::pattern);
    if (known == pre_tokenizers.end()) pattern.wrong("the pattern of GPT-2, Llama 3 or Qwen 2");
    pieces_ = &*known;
    if (steps[1]["type"].string() != "ByteLevel") steps[1]["type"].wrong("\"ByteLevel\"");
    read_byte_level(steps[1], false);
  }
  void read_byte_level(const json_at& p, bool own_pattern) {
    expect_flag(p["add_prefix_space"], false, true);
    expect_flag(p["use_regex"], own_pattern, true);
    if (own_pattern) pieces_ = &pre_tokenizers[0];
  }

  void read_model(const json_at& model) {
    if (model["type"] && model["type"].string() != "BPE") model["type"].wrong("\"BPE\"");
    for (const char* name : {"dropout", "unk_token"}) expect_absent(model[name]);
    for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"})
      if (const json_at field = model[name]; field && !field.string().empty()) field.wrong("null");
    expect_flag(model["byte_fallback"], false, false);
    ignore_merges_ = flag(model["ignore_merges"], false);
    const json_at vocab = model["vocab"];
    const std::size_t count = vocab.object().size();
    std::unordered_map<std::string_view, int> written;  // the document outlives it
    written.reserve(count), ids_.reserve(count), tokens_.reserve(count);
    for (const auto& [token, value] : vocab.object()) {
      const int id = read_id(vocab, token, value);
      auto bytes = alphabet_bytes(token);
      tokens_.emplace_back(id, bytes ? *bytes : token);
      if (bytes) ids_.emplace(std::move(*bytes), id);  // others are in no text
      written.emplace(token, id);
    }
    std::sort(tokens_.begin(), tokens_.end());
    for (std::size_t i = 1; i < count; ++i)
      MOESKIP_CHECK(file_error, tokens_[i].first != tokens_[i - 1].first, vocab.where, ": the id ", tokens_[i].first,
                    " appears twice");
    for (int b = 0; b < 256; ++b) {
      const auto found = ids_.find(std::string(1, static_cast<char>(b)));
      MOESKIP_CHECK(file_error, found != ids_.end(), vocab.where,
                    ": expected a token for every byte, got none for byte ", b);
      merges_.byte_ids[std::size_t(b)] = found->second;
    }
    const json_at merges = model["merges"];
    merges_.reserve(merges.list().size());
    for (std::size_t i = 0; i < merges.list().size(); ++i) read_merge(merges[i], int(i), written);
  }

  static int read_id(const json_at& vocab, const std::string& token, const json_value& value) {
    const std::int64_t* id = value.as<std::int64_t>();
    if (id && *id >= 0 && *id <= largest_id) return int(*id);  // where it stands is only said when it is wrong
    json_at{&value, text(vocab.where, ": ", in_quotes(token))}.wrong(text("a whole number from 0 to ", largest_id));
  }

  /// "Ġ t", or ["Ġ", "t"].
  void read_merge(const json_at& m, int rank, const std::unordered_map<std::string_view, int>& written) {
    std::string left, right;
    if (m.value->as<std::string>()) {
      const std::size_t space = m.string().find(' ');
      if (space == std::string::npos) m.wrong("two tokens");
      left = m.string().substr(0, space), right = m.string().substr(space + 1);
    } else {
      if (m.list().size() != 2) m.wrong("two tokens");
      left = m[0].string(), right = m[1].string();
    }
    const auto id = [&](const std::string& token) {
      const auto found = written.find(token);
      MOESKIP_CHECK(file_error, found != written.end(), m.where, ": expected tokens of the vocabulary, got ",
                    in_quotes(token));
      return found->second;
    };
    const int a = id(left), b = id(right), both = id(left + right);
    MOESKIP_CHECK(file_error, merges_.add(a, b, {rank, both}), m.where, ": the merge of ", in_quotes(left), " and ",
                  in_quotes(right), " appears twice");
  }

  void read_added(const json_at& list) {
    if (list.list().size() > most_added) list.wrong(text("at most ", most_added, " added tokens"));
    std::map<int, std::string> more;  // id -> bytes, of those that the vocabulary does not have
    for (std::size_t i = 0; i < list.list().size(); ++i) {
      const json_at a = list[i];
      for (const char* name : {"lstrip", "rstrip", "single_word"}) expect_flag(a[name], false, false);
      added token{a["content"].string(), int(a["id"].integer(0, largest_id)), flag(a["normalized"], true),
                  flag(a["special"], false)};
      if (token.content.empty()) a["content"].wrong("text");
      if (token.normalized && nfc_) token.content = to_nfc(token.content);
      const std::size_t at = place(token.id);
      const std::string bytes = token_bytes(token.content);
      const std::string& known = holds(at, token.id) ? tokens_[at].second : more.emplace(token.id, bytes).first->second;
      if (known != bytes) a["id"].wrong(text("the id of ", in_quotes(token.content)));
      added_.push_back(std::move(token));
    }
    const auto middle = tokens_.insert(tokens_.end(), more.begin(), more.end());
    std::inplace_merge(tokens_.begin(), middle, tokens_.end());
    // Where several begin at one place the longest is meant.
    std::ranges::stable_sort(added_,
                             [](const added& a, const added& b) { return a.content.size() > b.content.size(); });
  }

  void encode_words(std::vector<int>& out, std::string_view text) const {
    std::string whole;
    while (!text.empty()) {
      const std::string_view piece = text.substr(0, pieces_->first(text));
      text.remove_prefix(piece.size());
      if (ignore_merges_)
        if (const auto found = ids_.find(whole.assign(piece)); found != ids_.end()) {
          out.push_back(found->second);
          continue;
        }
      merges_.encode(out, piece);
    }
  }

  static constexpr std::int64_t largest_id = 1 << 30;
  static constexpr std::size_t most_added = 4096;  // each is looked for in every text
  bool nfc_ = false, ignore_merges_ = false;
  const pre_tokenizer* pieces_ = nullptr;
  byte_pairs merges_;
  std::unordered_map<std::string, int> ids_;         // bytes -> id
  std::vector<std::pair<int, std::string>> tokens_;  // id -> bytes, sorted
  std::vector<added> added_;                         // longer ones first
};

}  // namespace moeskip::tokenizer
