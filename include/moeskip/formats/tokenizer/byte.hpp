// The byte tokenizer: a token is a byte, its id the byte's value. Needs no vocabulary and loses nothing:
// decode(encode(text)) == text for every text.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "moeskip/base/check.hpp"
#include "moeskip/formats/utf8.hpp"

namespace moeskip::tokenizer {

struct byte {
  static constexpr int vocab = 256;

  static std::vector<int> encode(std::string_view text) {
    std::vector<int> ids;
    ids.reserve(text.size());
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }

  /// The bytes of ids, which need not be UTF-8. Throws config_error at an id outside 0..255.
  static std::string decode(std::span<const int> ids) {
    std::string out;
    out.reserve(ids.size());
    for (std::size_t i = 0; i < ids.size(); ++i) out += character(ids[i], i);
    return out;
  }

  /// Decodes token by token into text that can be printed at once (formats/utf8.hpp).
  class stream {
   public:
    std::string push(int id) {
      const char c = character(id, position_++);
      return utf8_.push({&c, 1});
    }
    std::string flush() {
      position_ = 0;
      return utf8_.flush();
    }

   private:
    utf8_stream utf8_;
    std::size_t position_ = 0;
  };

 private:
  static char character(int id, std::size_t position) {
    MOESKIP_CHECK(config_error, id >= 0 && id < vocab, "byte tokenizer: expected ids 0 to 255, got ", id,
                  " at position ", position);
    return static_cast<char>(id);
  }
};

}  // namespace moeskip::tokenizer
