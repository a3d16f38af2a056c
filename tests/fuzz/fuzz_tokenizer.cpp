// Any bytes as the rest of a tokenizer.json whose vocabulary begins with the tokens of all bytes, without which none is
// sound: they are refused with a file_error, or give a tokenizer that encodes a text, and gives it back where it does not
// normalise. And a sound tokenizer takes the same bytes as a text.
#include <cstdlib>
#include <filesystem>

#include "moeskip/formats/tokenizer/byte_level.hpp"

namespace ms = moeskip;

/// {"model":{"vocab":{"!":0, …: the characters that stand for bytes, with ids 0 to 255.
static std::string beginning() {
  std::string json = R"({"model":{"vocab":{)";
  int next = 0;
  for (char32_t c = 0x21; c < 0x144; ++c) {
    const bool printable = (c <= 0x7E) || (c >= 0xA1 && c <= 0xAC) || (c >= 0xAE && c <= 0xFF);
    if (!printable && c < 0x100) continue;
    json += next ? ",\"" : "\"";
    if (c == '"' || c == '\\') json += '\\';
    ms::tokenizer::append_utf8(json, c);
    json += ms::text("\":", next++);
  }
  return json;
}

static ms::tokenizer::byte_level read(const std::string& json) {
  const ms::json_value document = ms::parse_json(std::as_bytes(std::span(json.data(), json.size())), "tokenizer.json");
  return ms::tokenizer::byte_level(document, "tokenizer.json");
}

/// Text in NFC already, so that every tokenizer gives it back.
static void round_trip(const ms::tokenizer::byte_level& words, std::string_view text) {
  if (words.decode(words.encode(text)) != text) std::abort();
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::string begin = beginning();
  static const ms::tokenizer::byte_level sound = read(
      begin +
      R"(,"th":256,"the":257},"merges":["t h","th e"]},"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false}})");
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (ms::is_utf8(text)) round_trip(sound, text);
  try {
    round_trip(read(begin + std::string(text)), "The 123 \xE2\x98\x83  \n\n don't  <|endoftext|>");
  } catch (const ms::file_error&) {}
  return 0;
}
