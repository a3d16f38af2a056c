// SentencePiece tokenizers, BPE or unigram: those of Llama 2, Mixtral and OpenMoE (umT5).          arXiv:1808.06226
// Ids are those of the package `sentencepiece`, without bos and eos: begin a text with bos() yourself. Text that looks
// like a control token ("<s>") is text, unless encode is told otherwise.
// Opt-in, and no part of moeskip.hpp: link moeskip::sentencepiece (-DMOESKIP_SENTENCEPIECE=ON), which links
// libsentencepiece.
//
//   const ms::tokenizer::sentence_piece words("Mixtral-8x7B-v0.1/tokenizer.model");
//   std::vector<int> ids = words.encode("Once upon a time");
#pragma once

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <sentencepiece_processor.h>

#include "moeskip/base/check.hpp"
#include "moeskip/formats/mmap.hpp"
#include "moeskip/formats/tokenizer/special_tokens.hpp"
#include "moeskip/formats/utf8.hpp"

namespace moeskip::tokenizer {

class sentence_piece {
 public:
  /// Reads a model, or the tokenizer.model or spiece.model in a folder. Throws file_error.
  explicit sentence_piece(std::filesystem::path path) {
    if (std::filesystem::is_directory(path))
      path /= std::filesystem::exists(path / "tokenizer.model") ? "tokenizer.model" : "spiece.model";
    const mapped_file map(path);
    const auto read = model_.LoadFromSerializedProto({reinterpret_cast<const char*>(map.bytes().data()), map.size()});
    MOESKIP_CHECK(file_error, read.ok(), path.string(), ": expected a SentencePiece model, got something else: ",
                  std::string_view(read.message()).substr(0, 200));
    for (int id = 0; id < model_.GetPieceSize(); ++id) {
      surfaces_.push_back(read_surface(id));
      if (special(id)) controls_.push_back({model_.IdToPiece(id), id});
    }
    std::ranges::stable_sort(controls_, std::ranges::greater{}, [](const control& c) { return c.content.size(); });
    find_leading_spaces();
  }

  /// How many tokens there are: ids are smaller.
  int vocab() const { return int(surfaces_.size()); }
  /// The id of a token as the model writes it, with ▁ for a space: "<s>", "▁the".
  std::optional<int> id(std::string_view token) const {
    const int found = model_.PieceToId(token);
    return found >= 0 && model_.IdToPiece(found) == token ? std::optional(found) : std::nullopt;
  }
  /// Whether an id is no text: bos, eos, padding and the like.
  bool special(int id) const { return known(id) && model_.IsControl(id); }
  std::optional<int> bos() const { return token(model_.bos_id()); }
  std::optional<int> eos() const { return token(model_.eos_id()); }
  std::optional<int> pad() const { return token(model_.pad_id()); }
  std::optional<int> unknown() const { return token(model_.unk_id()); }

  /// The ids of a text. Control tokens are recognised on demand; what stands between them is then a text of its own,
  /// with the space that the model puts before one. Throws config_error where the text is not UTF-8.
  std::vector<int> encode(std::string_view text, special_tokens special = special_tokens::as_text) const {
    const std::size_t wrong = utf8_error_offset(text);
    MOESKIP_CHECK(config_error, wrong == text.size(), "tokenizer: expected UTF-8, got something else at byte ", wrong);
    std::vector<int> out;
    const auto wanted = [&](const control&) { return special == special_tokens::recognised; };
    cut_at(out, text, controls_, wanted, [&](std::string_view part) {
      std::vector<int> ids;
      const auto done = model_.Encode(part, &ids);
      MOESKIP_CHECK(config_error, done.ok(), "tokenizer: ", done.message());
      out.insert(out.end(), ids.begin(), ids.end());
    });
    return out;
  }

  /// The bytes of one id, wherever in a text it stands.
  const std::string& bytes(int id) const {
    MOESKIP_CHECK(config_error, known(id), "tokenizer: expected ids 0 to ", vocab() - 1, ", got ", id);
    return surfaces_[std::size_t(id)];
  }
  /// The bytes of ids, which need not be UTF-8; without the space that encode puts before a text. Throws config_error
  /// at an id that is no token's.
  std::string decode(std::span<const int> ids) const {
    std::string out;
    leading_space space(*this);
    for (const int id : ids) out += space.without(id);
    return out;
  }

 private:
  /// Removes the spaces that a text does not begin with, as the package does.
  class leading_space {
   public:
    explicit leading_space(const sentence_piece& words) : words_(&words) {}
    std::string_view without(int id) {
      std::string_view text = words_->bytes(id);
      // The characters of <unk> and of byte tokens are as they stand.
      if (!begun_ && words_->strips_first_ && text.starts_with(' ') && words_->written_with_space(id)) {
        text.remove_prefix(1);
        begun_ = !words_->strips_all_;
      }
      begun_ = begun_ || !text.empty();
      return text;
    }

   private:
    const sentence_piece* words_;
    bool begun_ = false;
  };

 public:
  /// Decodes token by token into text that can be printed at once (formats/utf8.hpp).
  class stream {
   public:
    explicit stream(const sentence_piece& words) : words_(&words), space_(words) {}
    std::string push(int id) { return utf8_.push(space_.without(id)); }
    /// The end: the stream can be used again.
    std::string flush() {
      space_ = leading_space(*words_);
      return utf8_.flush();
    }

   private:
    const sentence_piece* words_;
    leading_space space_;
    utf8_stream utf8_;
  };

 private:
  struct control {
    std::string content;
    int id;
  };

  static constexpr std::string_view written_space = "\xE2\x96\x81";  // ▁

  bool known(int id) const { return id >= 0 && id < vocab(); }
  std::optional<int> token(int id) const { return known(id) ? std::optional(id) : std::nullopt; }
  bool written_with_space(int id) const { return std::string_view(model_.IdToPiece(id)).starts_with(written_space); }

  /// What a token stands for, anywhere but at the beginning.
  std::string read_surface(int id) const {
    const std::string& piece = model_.IdToPiece(id);
    if (model_.IsControl(id)) return {};
    if (model_.IsUnknown(id)) return model_.DecodeIds({id});
    if (model_.IsByte(id)) return std::string(1, byte_of(piece));
    std::string out;
    for (std::size_t at = 0, next; at < piece.size(); at = next) {
      next = std::min(piece.find(written_space, at), piece.size());
      out.append(piece, at, next - at);
      if (next < piece.size()) out += ' ', next += written_space.size();
    }
    return out;
  }
  /// "<0x0A>" is a line feed; the library has refused a model with other bytes.
  static char byte_of(std::string_view piece) {
    int value = 0;
    std::from_chars(piece.data() + 3, piece.data() + 5, value, 16);
    return static_cast<char>(value);
  }

  /// Which spaces the model takes from the beginning of a text is not in its interface, so it is asked: it decodes
  /// tokens that are a space and nothing else, or begin with one.
  void find_leading_spaces() {
    for (int id = 0; id < vocab() && !strips_first_; ++id)
      if (plain(id) && written_with_space(id)) strips_first_ = model_.DecodeIds({id}) != bytes(id);
    if (const std::optional<int> alone = id(written_space); alone && strips_first_)
      strips_all_ = model_.DecodeIds({*alone, *alone}).empty();
  }
  bool plain(int id) const { return !model_.IsControl(id) && !model_.IsUnknown(id) && !model_.IsByte(id); }

  ::sentencepiece::SentencePieceProcessor model_;
  std::vector<std::string> surfaces_;  // id -> bytes
  std::vector<control> controls_;      // longer ones first
  bool strips_first_ = false, strips_all_ = false;
};

}  // namespace moeskip::tokenizer
