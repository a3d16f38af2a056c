// Any bytes as tokenizer.json: they are refused with a file_error, or give a tokenizer whose ids can be decoded. A sound
// tokenizer takes the same bytes as a text, and gives them back.
#include <cstdlib>
#include <filesystem>

#include "moeskip/formats/tokenizer/byte_level.hpp"

namespace ms = moeskip;

/// The tokenizer of all bytes, with a few merges.
static ms::tokenizer::byte_level sound() {
  std::string json = R"({"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false},"model":{"vocab":{)";
  int next = 0;
  for (char32_t c = 0x21; c < 0x144; ++c) {
    const bool printable = (c <= 0x7E) || (c >= 0xA1 && c <= 0xAC) || (c >= 0xAE && c <= 0xFF);
    if (!printable && c < 0x100) continue;
    json += next ? ",\"" : "\"";
    if (c == '"' || c == '\\') json += '\\';
    ms::tokenizer::append_utf8(json, c);
    json += ms::text("\":", next++);
  }
  json += ms::text(R"(,"th":)", next, R"(,"the":)", next + 1, R"(},"merges":["t h","th e"]}})");
  const ms::json_value document = ms::parse_json(std::as_bytes(std::span(json.data(), json.size())), "sound");
  return ms::tokenizer::byte_level(document, "sound");
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const ms::tokenizer::byte_level words = sound();
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (ms::is_utf8(text) && words.decode(words.encode(text)) != text) std::abort();
  try {
    const ms::json_value document = ms::parse_json(std::as_bytes(std::span(data, size)), "tokenizer.json");
    const ms::tokenizer::byte_level read(document, "tokenizer.json");
    (void)read.decode(read.encode("The 123 \xE2\x98\x83  \n\n don't  <|endoftext|>"));
  } catch (const ms::file_error&) {}
  return 0;
}
