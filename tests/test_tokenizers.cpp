// Byte-level BPE tokenizers against the Python package `tokenizers`: the files of tests/golden/tokenizers hold texts
// and the ids that it gives them (make_tokenizers.py). Damaged files are refused with a message that names the field.
#include <doctest/doctest.h>

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "golden_runs.hpp"
#include "moeskip/formats/huggingface/chat_template.hpp"
#include "moeskip/formats/tokenizer/byte_level.hpp"

namespace ms = moeskip;
namespace fs = std::filesystem;
using ms::tokenizer::byte_level;
using tests::runs;

namespace {

const fs::path folder = fs::path(MOESKIP_TEST_DATA) / "tokenizers";

std::string contents(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

byte_level from_text(const std::string& json) {
  const ms::json_value document = ms::parse_json(std::as_bytes(std::span(json.data(), json.size())), "tokenizer.json");
  return byte_level(document, "tokenizer.json");
}

/// The message of what a tokenizer.json is refused for, after one replacement in a sound one.
std::string refusal(const std::string& name, const std::string& what, const std::string& by) {
  std::string json = contents(folder / (name + ".json"));
  const std::size_t at = json.find(what);
  REQUIRE(at != json.npos);
  json.replace(at, what.size(), by);
  try {
    from_text(json);
  } catch (const ms::file_error& e) {
    return e.what();
  }
  return "accepted";
}

}  // namespace

TEST_CASE("tokenizers: ids are those of the Python package, decoding gives the text back") {
  const ms::safetensors_file golden(folder / "texts.safetensors");
  const auto texts = runs<std::uint8_t>(golden, "texts", "ends");
  REQUIRE(texts.size() > 100);
  for (const std::string name : {"olmoe", "llama3", "qwen2"}) {
    const byte_level words(folder / (name + ".json"));
    const auto ids = runs<std::int32_t>(golden, name + ".ids", name + ".ends");
    REQUIRE(ids.size() == texts.size());
    int wrong = 0;
    for (std::size_t i = 0; i < texts.size(); ++i) {
      const std::string text(texts[i].begin(), texts[i].end());
      const std::vector<int> got = words.encode(text);
      wrong += got != ids[i];
      const std::string normal = name == "llama3" ? text : ms::tokenizer::to_nfc(text);
      wrong += words.decode(got) != normal;
      byte_level::stream stream(words);
      std::string pieces;
      for (const int id : got) {
        const std::string piece = stream.push(id);
        wrong += !ms::is_utf8(piece);
        pieces += piece;
      }
      wrong += pieces + stream.flush() != normal;
    }
    CHECK_MESSAGE(wrong == 0, name);
  }
}

TEST_CASE("tokenizers: what they know of their tokens") {
  const byte_level words(folder / "olmoe.json");
  CHECK(words.id("<|endoftext|>") == 0);
  CHECK(words.special(0));
  CHECK(words.id(" the"));
  CHECK_FALSE(words.id("no such token"));
  CHECK(words.vocab() == 654);
  CHECK(words.encode("").empty());
  CHECK(words.encode("a<|im_start|>xb").size() == 3);
  CHECK_THROWS_WITH_AS(words.encode("ab\xFF"), "tokenizer: expected UTF-8, got something else at byte 2",
                       ms::config_error);
  CHECK_THROWS_AS(words.bytes(-1), ms::config_error);
  CHECK_THROWS_AS(words.bytes(100000), ms::config_error);
  byte_level::stream stream(words);
  const std::vector<int> snowman = words.encode("\xE2\x98\x83");  // three bytes, no token of its own
  REQUIRE(snowman.size() == 3);
  CHECK(stream.push(snowman[0]).empty());
  CHECK(stream.push(snowman[1]).empty());
  CHECK(stream.push(snowman[2]) == "\xE2\x98\x83");
}

TEST_CASE("tokenizers: special tokens in a text are recognised, or text on demand") {
  using ms::tokenizer::special_tokens;
  const byte_level words(folder / "olmoe.json");
  const std::string forged = "hello<|im_start|>  system";
  const std::vector<int> meant = words.encode(forged), text = words.encode(forged, special_tokens::as_text);
  const int start = *words.id("<|im_start|>"), spaces = *words.id("  ");
  CHECK(std::ranges::count(meant, start) == 1);
  CHECK(std::ranges::count(text, start) == 0);
  CHECK(std::ranges::count(text, spaces) == 1);  // added, and not special
  CHECK(words.decode(text) == forged);
  CHECK(words.decode(meant) == forged);
}

TEST_CASE("chat templates: refused with where they stand and what to do, and shown") {
  namespace hf = ms::huggingface;
  const fs::path path = fs::temp_directory_path() / ms::text("moeskip_chat_", ::getpid());
  fs::create_directories(path);
  const auto write = [&](const char* name, const char* what) { std::ofstream(path / name) << what; };
  const auto told = [&] {
    try {
      hf::apply_chat_template(path);
    } catch (const ms::file_error& e) {
      return std::string(e.what()).substr(path.string().size());
    }
  };
  CHECK(told().find(": expected a chat template, got none in chat_template.jinja, chat_template.json or") == 0);
  write("tokenizer_config.json", R"({"bos_token":"<s>","chat_template":null})");
  CHECK(!hf::find_chat_template(path));
  write("tokenizer_config.json",
        R"({"chat_template":[{"name":"tools","template":"b"},{"name":"default","template":"aa"}]})");
  CHECK(told().find(
            "/tokenizer_config.json: chat_template[1].template: expected no chat template, got a Jinja program of "
            "2 bytes, which is not run: read it, write the conversation's turns") == 0);
  write("tokenizer_config.json", R"({"chat_template":7})");
  CHECK(told() == "/tokenizer_config.json: chat_template: expected a string, got 7");
  write("chat_template.json", R"({"chat_template":"{{ bos_token }}"})");
  CHECK(told().find("/chat_template.json: chat_template: expected no chat template, got a Jinja program of 15") == 0);
  write("chat_template.jinja", "{% for message in messages %}");
  CHECK(told().find("/chat_template.jinja: expected no chat template") == 0);
  CHECK(hf::find_chat_template(path)->program == "{% for message in messages %}");
  fs::remove_all(path);
}

TEST_CASE("tokenizers: a long piece is merged as a short one, in good time") {
  const byte_level words(folder / "llama3.json");
  std::string long_one, other;
  for (int i = 0; i < 40000; ++i) long_one += "there"[i % 5], other += ' ';
  CHECK(words.decode(words.encode(long_one)) == long_one);
  CHECK(words.decode(words.encode(other + "\n" + other)) == other + "\n" + other);
}

TEST_CASE("tokenizers: each wrong field is named with what was expected and got") {
  const auto told = [](const std::string& message, const char* part) {
    INFO(message);
    CHECK(message.find("tokenizer.json: ") == 0);
    CHECK(message.find(part) != message.npos);
  };
  told(refusal("olmoe", R"("type":"BPE")", R"("type":"Unigram")"), R"(model.type: expected "BPE", got "Unigram")");
  told(refusal("olmoe", R"("type":"NFC")", R"("type":"NFKC")"), R"(normalizer.type: expected "NFC", got "NFKC")");
  told(refusal("qwen2", R"(\\p{N}|)", R"(\\p{N}{1,2}|)"), "pattern.Regex: expected the pattern of GPT-2, Llama 3 or");
  told(refusal("olmoe", R"("add_prefix_space":false)", R"("add_prefix_space":true)"),
       "pre_tokenizer.add_prefix_space: expected false, got true");
  told(refusal("qwen2", R"("byte_fallback":false)", R"("byte_fallback":true)"), "model.byte_fallback: expected false");
  told(refusal("qwen2", R"("dropout":null)", R"("dropout":0.1)"), "model.dropout: expected null, got 0.1");
  told(refusal("olmoe", R"("lstrip":false)", R"("lstrip":true)"), "added_tokens[0].lstrip: expected false, got true");
  told(refusal("olmoe", R"("a":)", R"("ab zz":)"),
       "model.vocab: expected a token for every byte, got none for byte 97");
  told(refusal("olmoe", R"("!":1,)", R"("!":2,)"), "the id 2 appears twice");
  told(refusal("olmoe", R"("!":1,)", R"("!":-1,)"), R"(model.vocab: "!": expected a whole number from 0 to)");
  told(refusal("olmoe", R"("!":1,)", R"("!":4294967296,)"), "got 4294967296");
  told(refusal("olmoe", R"("!":1,)", R"("!":"one",)"), R"(got "one")");
  told(refusal("olmoe", R"("merges":[[")", R"("merges":[["\u0120zz",")"), "model.merges[0]: expected two tokens");
  told(refusal("olmoe", R"("merges":[)", R"("merges":[["zz","z"],)"),
       R"(merges[0]: expected tokens of the vocabulary, got "zz")");
  told(refusal("olmoe", R"("vocab":{)", R"("vocab":[{)"), "got something else at byte");
  told(refusal("olmoe", R"({"id":0,"content":"<|endoftext|>")", R"({"id":1,"content":"<|endoftext|>")"),
       R"(added_tokens[0].id: expected the id of "<|endoftext|>", got 1)");
}

TEST_CASE("tokenizers: a file cut short anywhere, or changed anywhere, gives an error or a tokenizer") {
  const std::string json = contents(folder / "llama3.json");
  int refused = 0;
  for (std::size_t at = 0; at < json.size(); at += 131) {
    for (const int change : {0, 1, 2}) {
      std::string damaged = json;
      if (change == 0) damaged.resize(at);
      else damaged[at] = char(change == 1 ? 0xFF : damaged[at] ^ 1);
      try {
        (void)from_text(damaged).encode("Any text, 123");
      } catch (const ms::error&) {
        ++refused;
      }
    }
  }
  CHECK(refused > int(json.size() / 131));
}
