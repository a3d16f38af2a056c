// SentencePiece models against the Python package `sentencepiece`: the files of tests/golden/sentencepiece hold texts,
// the ids that it gives them, and what decodes from these (make_sentencepiece.py).
#include "moeskip/formats/tokenizer/sentence_piece.hpp"

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "golden_runs.hpp"
#include "moeskip/base/rng.hpp"

namespace ms = moeskip;
namespace fs = std::filesystem;
using ms::tokenizer::sentence_piece;
using tests::runs;

namespace {

const fs::path folder = fs::path(MOESKIP_TEST_DATA) / "sentencepiece";

std::vector<std::string> texts(const ms::safetensors_file& file, const std::string& name, const std::string& ends) {
  return runs<std::uint8_t, std::string>(file, name, ends);
}

std::string streamed(const sentence_piece& words, const std::vector<int>& ids) {
  sentence_piece::stream stream(words);
  std::string out;
  for (const int id : ids) {
    const std::string part = stream.push(id);
    CHECK(ms::is_utf8(part));
    out += part;
  }
  return out + stream.flush();
}

/// The message that a file with these bytes is refused with.
std::string refusal(const std::string& bytes) {
  const fs::path path = fs::temp_directory_path() / ms::text("moeskip_sentencepiece_", ::getpid(), ".model");
  std::ofstream(path, std::ios::binary) << bytes;
  std::string message = "accepted";
  try {
    const sentence_piece words(path);
  } catch (const ms::file_error& e) {
    message = e.what();
  }
  fs::remove(path);
  return message;
}
std::string contents(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace

TEST_CASE("sentencepiece: ids and texts are those of the Python package") {
  const ms::safetensors_file golden(folder / "texts.safetensors");
  const std::vector<std::string> in = texts(golden, "texts", "ends");
  REQUIRE(in.size() > 100);
  for (const std::string name : {"bpe", "unigram"}) {
    const sentence_piece words(folder / (name + ".model"));
    CHECK(words.vocab() == 640);
    const auto ids = runs<std::int32_t>(golden, name + ".ids", name + ".ends");
    const std::vector<std::string> out = texts(golden, name + ".texts", name + ".text_ends");
    REQUIRE(ids.size() == in.size());
    REQUIRE(out.size() == in.size());
    int wrong = 0;
    for (std::size_t i = 0; i < in.size(); ++i) {
      const std::vector<int> got = words.encode(in[i]);
      wrong += got != ids[i];
      wrong += words.decode(got) != out[i];
      wrong += streamed(words, got) != out[i];
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("sentencepiece: any ids decode to what the library makes of them, token by token as well") {
  const ms::draws draw{{3}, ms::stream::user};
  for (const std::string name : {"bpe", "unigram"}) {
    const sentence_piece words(folder / (name + ".model"));
    ::sentencepiece::SentencePieceProcessor library;
    REQUIRE(library.Load((folder / (name + ".model")).string()).ok());
    for (std::uint64_t trial = 0; trial < 2000; ++trial) {
      std::vector<int> ids;
      const std::uint64_t few = draw.below(2, trial, 1) ? 12 : 640;  // control tokens, <unk> and spaces, or any
      for (std::uint64_t i = 0; i < draw.below(8, trial); ++i) {
        const int id = int(draw.below(few, trial, 2 + i));
        if (few == 12 && draw.below(2, trial, 20 + i)) ids.push_back(*words.id("▁"));
        else if (!library.IsByte(id)) ids.push_back(id);  // alone they are no characters
      }
      CHECK(words.decode(ids) == library.DecodeIds(ids));
      CHECK(streamed(words, ids) == library.DecodeIds(ids));
    }
  }
}

TEST_CASE("sentencepiece: special tokens have ids, and are no text") {
  const sentence_piece bpe(folder / "bpe.model"), unigram(folder / "unigram.model");
  CHECK(bpe.bos() == 1);
  CHECK(bpe.eos() == 2);
  CHECK(!bpe.pad());
  CHECK(bpe.unknown() == 0);
  CHECK(!unigram.bos());
  CHECK(unigram.pad() == 0);
  CHECK(unigram.eos() == 1);
  CHECK(bpe.id("<s>") == 1);
  CHECK(bpe.id("<unk>") == 0);
  CHECK(!bpe.id("no such token"));
  CHECK(bpe.special(1));
  CHECK(!bpe.special(*bpe.id("<|user|>")));
  CHECK(bpe.bytes(1).empty());
  for (const int id : bpe.encode("<s>")) CHECK(id != 1);  // what users write is no command
  CHECK(std::ranges::count(bpe.encode("a<|user|>b"), *bpe.id("<|user|>")) == 1);
}

TEST_CASE("sentencepiece: control tokens in a text are recognised on demand") {
  using ms::tokenizer::special_tokens;
  const sentence_piece words(folder / "bpe.model");
  std::vector<int> expected{1};
  const auto add = [&](const std::vector<int>& ids) { expected.insert(expected.end(), ids.begin(), ids.end()); };
  add(words.encode("[INST] Hello [/INST] Hi")), add({2}), add(words.encode("[INST]"));
  CHECK(words.encode("<s>[INST] Hello [/INST] Hi</s>[INST]", special_tokens::recognised) == expected);
  CHECK(words.encode("</s></s>", special_tokens::recognised) == std::vector<int>{2, 2});
  CHECK(words.encode("no token", special_tokens::recognised) == words.encode("no token"));
}

TEST_CASE("sentencepiece: a stream holds back a character until it is whole") {
  const sentence_piece words(folder / "bpe.model");
  sentence_piece::stream stream(words);
  const auto byte = [&](const char* name) { return *words.id(name); };
  CHECK(stream.push(byte("<0xE2>")).empty());
  CHECK(stream.push(byte("<0x98>")).empty());
  CHECK(stream.push(byte("<0x83>")) == "\xE2\x98\x83");
  CHECK(stream.push(byte("<0xE2>")).empty());
  CHECK(stream.flush() == ms::replacement_character);
  CHECK(stream.push(*words.id("▁t")) == "t");  // a new text
}

TEST_CASE("sentencepiece: what is no model, no text or no id is refused") {
  const sentence_piece words(folder / "bpe.model");
  CHECK_THROWS_AS(words.encode("\xFF"), ms::config_error);
  CHECK_THROWS_AS(words.bytes(640), ms::config_error);
  CHECK_THROWS_AS(words.decode(std::vector<int>{-1}), ms::config_error);
  CHECK_THROWS_AS(sentence_piece(folder / "missing.model"), ms::file_error);
  CHECK_THROWS_AS(sentence_piece(folder.parent_path()), ms::file_error);  // a folder without one
  CHECK(refusal("").find(": ") != std::string::npos);
  CHECK(refusal("no model").find("expected a SentencePiece model, got something else") != std::string::npos);
  std::string damaged = contents(folder / "bpe.model");
  const std::string whole = damaged;
  CHECK(refusal(whole) == "accepted");
  const std::size_t at = damaged.find("<0x41>");
  REQUIRE(at != damaged.npos);
  damaged.replace(at, 6, "<0x4G>");
  const std::string message = refusal(damaged);
  CHECK_MESSAGE(message.find("got something else: byte piece <0x4G> is invalid") != std::string::npos, message);
  int refused = 0;
  for (std::size_t end = 1; end < whole.size(); end += 97) refused += refusal(whole.substr(0, end)) != "accepted";
  CHECK(refused > int(whole.size() / 97 / 2));
}
