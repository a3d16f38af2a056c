// Any bytes as a tokenizer.json: they are refused with a file_error, or give a tokenizer that encodes a text, and gives
// it back where it does not normalise. The tokens of all bytes, without which none is sound, are put at the beginning
// of its vocabulary once it is read: as part of every text they would cost most of the time. And a sound tokenizer
// takes the same bytes as a text.
#include <cstdlib>

#include "moeskip/formats/tokenizer/byte_level.hpp"

namespace ms = moeskip;

/// An execution frees less than a megabyte, so that 8 of them are enough to notice that freed memory is used; by
/// default 256 MB wait, and each allocation is a page that the system must clear.
extern "C" const char* __asan_default_options() { return "quarantine_size_mb=8"; }

/// "!": 0, …: the characters that stand for bytes, with ids 0 to 255.
static ms::json_value::object tokens_of_bytes() {
  ms::json_value::object out;
  for (char32_t c = 0x21; c < 0x144; ++c) {
    const bool printable = (c <= 0x7E) || (c >= 0xA1 && c <= 0xAC) || (c >= 0xAE && c <= 0xFF);
    if (!printable && c < 0x100) continue;
    std::string token;
    ms::tokenizer::append_utf8(token, c);
    out.emplace_back(std::move(token), ms::json_value{std::int64_t(out.size())});
  }
  return out;
}

static ms::json_value* member(ms::json_value* of, std::string_view name) {
  return const_cast<ms::json_value*>(of ? of->find(name) : nullptr);
}

static ms::tokenizer::byte_level read(std::string_view json) {
  static const ms::json_value::object bytes = tokens_of_bytes();
  ms::json_value document = ms::parse_json(std::as_bytes(std::span(json)), "tokenizer.json");
  if (ms::json_value* vocab = member(member(&document, "model"), "vocab"))
    if (auto* tokens = std::get_if<ms::json_value::object>(&vocab->is))
      tokens->insert(tokens->begin(), bytes.begin(), bytes.end());
  return ms::tokenizer::byte_level(document, "tokenizer.json");
}

/// Text in NFC already, so that every tokenizer gives it back.
static void round_trip(const ms::tokenizer::byte_level& words, std::string_view text) {
  if (words.decode(words.encode(text)) != text) std::abort();
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const ms::tokenizer::byte_level sound =
      read(R"({"model":{"vocab":{"th":256,"the":257},"merges":["t h","th e"]},)"
           R"("pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false}})");
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (ms::is_utf8(text)) round_trip(sound, text);
  try {
    round_trip(read(text), "The 123 \xE2\x98\x83  \n\n don't  <|endoftext|>");
  } catch (const ms::file_error&) {}
  return 0;
}
