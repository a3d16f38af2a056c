// formats/: memory maps, atomic files, UTF-8, texts, the byte tokenizer, arrays and safetensors; and every
// way in which a file can be wrong, with what the message says about it.
#include <sys/resource.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <limits>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

#include "moeskip/base/rng.hpp"
#include "moeskip/eval/probe_file.hpp"
#include "moeskip/formats/arrays.hpp"
#include "moeskip/formats/atomic_file.hpp"
#include "moeskip/formats/mmap.hpp"
#include "moeskip/formats/safetensors.hpp"
#include "moeskip/formats/text.hpp"
#include "moeskip/formats/tokenizer/byte.hpp"
#include "moeskip/formats/utf8.hpp"

namespace ms = moeskip;
namespace fs = std::filesystem;
using namespace std::string_literals;

namespace {

/// A folder that vanishes with its contents.
struct scratch {
  fs::path folder;

  scratch() {
    static int count = 0;
    folder = fs::temp_directory_path() / ms::text("moeskip-test-", ::getpid(), "-", count++);
    fs::create_directories(folder);
  }
  ~scratch() {
    std::error_code ignored;
    fs::remove_all(folder, ignored);
  }
  scratch(const scratch&) = delete;
  fs::path operator/(std::string_view name) const { return folder / name; }
  std::size_t files() const {
    return static_cast<std::size_t>(std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
  }
};

void put(const fs::path& path, std::string_view content) {
  fs::remove(path);  // some file systems flush a file that is emptied and written again, which takes its time
  std::ofstream file(path, std::ios::binary);
  file.write(content.data(), static_cast<std::streamsize>(content.size()));
  REQUIRE(file.good());
}

std::string get(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream content;
  content << file.rdbuf();
  return content.str();
}

/// What the error of type E that f must throw says; other errors pass through and fail the test.
template <class E = ms::file_error, class F> std::string message_of(F&& f) {
  try {
    f();
  } catch (const E& e) {
    return e.what();
  }
  return "(nothing was thrown)";
}

void check_says(const std::string& message, std::initializer_list<std::string_view> parts) {
  for (const std::string_view part : parts) {
    INFO("expected \"", std::string(part), "\" in: ", message);
    CHECK(message.find(part) != message.npos);
  }
}

/// The content of a safetensors file; `claimed` replaces the true length of the header.
std::string raw(std::string_view header, std::string_view data = "", std::int64_t claimed = -1) {
  const std::uint64_t length = claimed < 0 ? header.size() : static_cast<std::uint64_t>(claimed);
  std::string out(sizeof length, '\0');
  std::memcpy(out.data(), &length, sizeof length);
  out += header;
  out += data;
  return out;
}

/// Lowers the largest file size that this process may write, as a full disk would.
struct small_disk {
  rlimit old{};
  void (*old_handler)(int);

  explicit small_disk(rlim_t bytes) : old_handler(std::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &old);
    const rlimit small{bytes, old.rlim_max};
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &small) == 0);
  }
  ~small_disk() {
    ::setrlimit(RLIMIT_FSIZE, &old);
    std::signal(SIGXFSZ, old_handler);
  }
  small_disk(const small_disk&) = delete;
};

/// Repeatable random numbers in call order.
struct dice {
  ms::draws draws{ms::seed{99}, ms::stream::user};
  std::uint64_t rolled = 0;
  std::size_t operator()(std::size_t n) { return static_cast<std::size_t>(draws.below(n, rolled++)); }
};

}  // namespace

// --- mmap -------------------------------------------------------------------------------------------------

TEST_CASE("mapped_file gives the bytes, moves, and keeps a replaced file") {
  const scratch dir;
  put(dir / "a", "hello\0world"s);
  ms::mapped_file a(dir / "a");
  const auto content = [](const ms::mapped_file& file) {
    return std::string(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  };
  CHECK(content(a) == "hello\0world"s);
  CHECK(a.path() == (dir / "a").string());

  ms::mapped_file b(std::move(a));
  CHECK(content(b) == "hello\0world"s);
  put(dir / "c", "other");
  ms::mapped_file c(dir / "c");
  c = std::move(b);
  CHECK(content(c) == "hello\0world"s);
  CHECK(c.path() == (dir / "a").string());

  ms::atomic_file replacement(dir / "a");
  replacement.write("new", 3);
  replacement.commit();
  CHECK(content(c) == "hello\0world"s);
  CHECK(get(dir / "a") == "new");
}

TEST_CASE("mapped_file: empty, missing, directory, device") {
  const scratch dir;
  put(dir / "empty", "");
  const ms::mapped_file empty(dir / "empty");
  CHECK(empty.size() == 0);
  CHECK(empty.bytes().empty());
  check_says(message_of([&] { ms::mapped_file(dir / "missing"); }),
             {(dir / "missing").string(), "cannot open", "No such file or directory"});
  check_says(message_of([&] { ms::mapped_file file(dir.folder); }), {dir.folder.string(), "directory"});
  check_says(message_of([] { ms::mapped_file("/dev/null"); }), {"/dev/null", "expected a regular file"});
}

// --- atomic_file ------------------------------------------------------------------------------------------

TEST_CASE("atomic_file replaces a file at commit, and not before") {
  const scratch dir;
  put(dir / "f", "old");
  fs::permissions(dir / "f", fs::perms::owner_read | fs::perms::owner_write);
  {
    ms::atomic_file file(dir / "f");
    file.write("new ", 4);
    file.write("content", 7);
    CHECK(file.size() == 11);
    CHECK(get(dir / "f") == "old");
    file.commit();
    CHECK(get(dir / "f") == "new content");
    check_says(message_of([&] { file.write("x", 1); }), {(dir / "f").string(), "committed"});
    check_says(message_of([&] { file.commit(); }), {(dir / "f").string(), "committed"});
  }
  CHECK(get(dir / "f") == "new content");
  CHECK(fs::status(dir / "f").permissions() == (fs::perms::owner_read | fs::perms::owner_write));
  CHECK(dir.files() == 1);
}

TEST_CASE("atomic_file without commit leaves nothing behind") {
  const scratch dir;
  put(dir / "f", "old");
  {
    ms::atomic_file file(dir / "f"), unborn(dir / "g");
    file.write("new", 3);
    CHECK(dir.files() == 3);
  }
  CHECK(get(dir / "f") == "old");
  CHECK(dir.files() == 1);
}

TEST_CASE("two writers of one file do not mix; a relative path works") {
  const scratch dir;
  const fs::path before = fs::current_path();
  fs::current_path(dir.folder);
  {
    ms::atomic_file a("f"), b("f");
    a.write("aaaa", 4);
    b.write("bb", 2);
    b.commit();
    CHECK(get("f") == "bb");
    a.commit();
    CHECK(get("f") == "aaaa");
  }
  fs::current_path(before);
  CHECK(dir.files() == 1);
}

TEST_CASE("atomic_file: folders that are missing or none, and a directory in the way") {
  const scratch dir;
  put(dir / "file.txt", "x");
  check_says(message_of([&] { ms::atomic_file(dir / "missing/f"); }),
             {(dir / "missing/f").string(), "cannot write", "No such file or directory"});
  check_says(message_of([&] { ms::atomic_file(dir / "file.txt/f"); }),
             {(dir / "file.txt/f").string(), "cannot write", "Not a directory"});
  check_says(message_of([&] { ms::atomic_file file(dir.folder); }), {dir.folder.string(), "is a directory"});
  check_says(message_of([] { ms::atomic_file("/dev/null"); }), {"/dev/null", "no regular file"});
  CHECK(dir.files() == 1);
  {
    ms::atomic_file file(dir / "late");
    fs::create_directory(dir / "late");
    check_says(message_of([&] { file.commit(); }), {(dir / "late").string(), "cannot rename", "directory"});
  }
  CHECK(dir.files() == 2);
}

TEST_CASE("a full disk leaves the old file and no temporary") {
  const scratch dir;
  put(dir / "f", "old");
  const std::string big(1 << 20, 'x');
  {
    const small_disk limit(1 << 16);
    ms::atomic_file file(dir / "f");
    check_says(message_of([&] { file.write(big.data(), big.size()); }),
               {(dir / "f").string(), "cannot write", "File too large", "after 65536 bytes", "unchanged"});
    CHECK(dir.files() == 1);  // at once, not when the object goes
    check_says(message_of([&] { file.write("x", 1); }), {"has failed before"});
    check_says(message_of([&] { file.commit(); }), {"has failed before"});
  }
  CHECK(get(dir / "f") == "old");
  CHECK(dir.files() == 1);
}

// --- UTF-8 ------------------------------------------------------------------------------------------------

namespace {

std::string utf8_of(std::uint32_t c) {
  const auto tail = [&](int shift) { return static_cast<char>(0x80 | (c >> shift & 0x3F)); };
  if (c < 0x80) return {static_cast<char>(c)};
  if (c < 0x800) return {static_cast<char>(0xC0 | c >> 6), tail(0)};
  if (c < 0x10000) return {static_cast<char>(0xE0 | c >> 12), tail(6), tail(0)};
  return {static_cast<char>(0xF0 | c >> 18), tail(12), tail(6), tail(0)};
}

/// What the stream makes of bytes that arrive at once.
std::string repaired(std::string_view bytes) {
  ms::utf8_stream stream;
  std::string out = stream.push(bytes);
  return out + stream.flush();
}

}  // namespace

TEST_CASE("UTF-8: every character is accepted, every surrogate and larger number refused") {
  int wrong = 0;
  for (std::uint32_t c = 0; c < 0x120000; ++c) {
    const bool is_character = c < 0x110000 && (c < 0xD800 || c > 0xDFFF);
    const ms::utf8_prefix first = ms::utf8_first(utf8_of(c));
    const bool accepted = first.status == ms::utf8_status::valid && first.length == utf8_of(c).size();
    wrong += accepted != is_character;
  }
  CHECK(wrong == 0);
}

TEST_CASE("UTF-8: no other byte sequence is accepted") {
  // Counting: two bytes encode 1920 characters, three 63488 less 2048 surrogates; of four bytes with tails at
  // the edges of what is allowed, 256 pairs of first bytes times 2 times 2.
  int two = 0, three = 0, four = 0;
  std::string bytes(4, '\0');
  const auto is_one = [&](std::size_t n) {
    const ms::utf8_prefix first = ms::utf8_first(std::string_view(bytes).substr(0, n));
    return first.status == ms::utf8_status::valid && first.length == n;
  };
  for (int a = 0x80; a < 0x100; ++a)
    for (int b = 0; b < 0x100; ++b) {
      bytes[0] = static_cast<char>(a), bytes[1] = static_cast<char>(b);
      two += is_one(2);
      for (int c = 0; a >= 0xE0 && c < 0x100; ++c) {
        bytes[2] = static_cast<char>(c);
        three += is_one(3);
      }
      for (const int c : {0x00, 0x7F, 0x80, 0xBF, 0xC0, 0xFF})
        for (const int d : {0x00, 0x7F, 0x80, 0xBF, 0xC0, 0xFF}) {
          bytes[2] = static_cast<char>(c), bytes[3] = static_cast<char>(d);
          four += is_one(4);
        }
    }
  CHECK(two == 1920);
  CHECK(three == 63488 - 2048);
  CHECK(four == 1024);
}

TEST_CASE("UTF-8: the offset of the first error, at every position of the eight-byte steps") {
  CHECK(ms::is_utf8(""));
  CHECK(ms::is_utf8("\0"s));
  for (std::size_t before = 0; before < 40; ++before) {
    const std::string ascii(before, 'a');
    CHECK(ms::utf8_error_offset(ascii) == before);
    CHECK(ms::is_utf8(ascii + "\u00e9\u20ac\U0001F600" + ascii));
    CHECK(ms::utf8_error_offset(ascii + "\xff" + ascii) == before);
    CHECK(ms::utf8_error_offset("\u20ac" + ascii + "\xe2\x82") == before + 3);
    CHECK(ms::utf8_error_offset(ascii + "\xed\xa0\x80") == before);  // a surrogate
  }
}

TEST_CASE("UTF-8: each maximal ill-formed part becomes one U+FFFD") {
  const std::string r(ms::replacement_character);
  CHECK(repaired("plain \u20ac") == "plain \u20ac");
  CHECK(repaired("\xff\xfe") == r + r);
  CHECK(repaired("\x80z") == r + "z");
  CHECK(repaired("\xe2\x82"
                 "A") == r + "A");
  CHECK(repaired("\xf0\x9f\x98\xf0\x9f\x98\x80") == r + "\U0001F600");
  CHECK(repaired("\xf0\x80\x80\x41") == r + r + r + "A");  // overlong: no byte can start anything
  CHECK(repaired("\xed\xa0\x80") == r + r + r);
  CHECK(repaired("\xc0\xaf") == r + r);
  CHECK(repaired("\xf4\x90\x80\x80") == r + r + r + r);
  CHECK(repaired("\xf1\x80\xe1\x80\xc2\x62") == r + r + r + "b");  // from the Unicode Standard, section 3.9
  CHECK(repaired("ok\xe2\x82") == "ok" + r);                       // unfinished at the end
}

TEST_CASE("UTF-8: a stream cut anywhere gives the same valid text") {
  dice roll;
  for (int round = 0; round < 500; ++round) {
    std::string bytes;
    for (std::size_t n = roll(40); n > 0; --n) {
      const std::size_t kind = roll(4);
      if (kind == 0) bytes += static_cast<char>(roll(256));
      else bytes += utf8_of(static_cast<std::uint32_t>(roll(kind == 1 ? 0x80 : kind == 2 ? 0xD800 : 0x110000)));
    }
    ms::utf8_stream stream;
    std::string out;
    for (std::size_t at = 0; at < bytes.size();) {
      const std::size_t n = roll(5);
      const std::string piece = stream.push(std::string_view(bytes).substr(at, n));
      CHECK(ms::is_utf8(piece));
      out += piece;
      at += n;
    }
    out += stream.flush();
    CHECK(out == repaired(bytes));
    if (ms::is_utf8(bytes)) CHECK(out == bytes);
    CHECK(stream.push("again") == "again");  // flush left nothing behind
  }
}

// --- text -------------------------------------------------------------------------------------------------

TEST_CASE("read_text takes a file as it is") {
  const scratch dir;
  dice roll;
  for (const std::size_t size : {1, 2, 65535, 65536, 65537, 200000}) {
    std::string content;
    while (content.size() < size) content += static_cast<char>(roll(128));
    put(dir / "t", content);
    CHECK(ms::read_text(dir / "t") == content);
  }
  put(dir / "t", "\xEF\xBB\xBF caf\u00e9\r\n\0end"s);
  CHECK(ms::read_text(dir / "t") == "\xEF\xBB\xBF caf\u00e9\r\n\0end"s);
}

TEST_CASE("read_text: missing, directory, empty, not UTF-8") {
  const scratch dir;
  check_says(message_of([&] { ms::read_text(dir / "missing.txt"); }),
             {(dir / "missing.txt").string(), "cannot open", "No such file or directory"});
  check_says(message_of([&] { ms::read_text(dir.folder); }), {dir.folder.string(), "Is a directory"});
  put(dir / "empty.txt", "");
  check_says(message_of([&] { ms::read_text(dir / "empty.txt"); }), {(dir / "empty.txt").string(), "is empty"});
  check_says(message_of([&] { ms::read_text(dir / "empty.txt/below"); }), {"Not a directory"});
  put(dir / "latin1.txt", "one\ntwo\ncaf\xe9 three\n");
  check_says(message_of([&] { ms::read_text(dir / "latin1.txt"); }),
             {(dir / "latin1.txt").string(), "expected UTF-8", "0xe9", "byte 11", "line 3"});
  put(dir / "cut.txt", "\u20ac\xe2\x82");
  check_says(message_of([&] { ms::read_text(dir / "cut.txt"); }), {"0xe2", "byte 3 ", "line 1"});
}

// --- byte tokenizer ---------------------------------------------------------------------------------------

TEST_CASE("byte tokenizer: ids are byte values, and nothing is lost") {
  using ms::tokenizer::byte;
  CHECK(byte::vocab == 256);
  CHECK(byte::encode("A\xff\0z"s) == std::vector<int>{65, 255, 0, 122});
  CHECK(byte::encode("").empty());
  std::string all;
  for (int i = 0; i < 256; ++i) all += static_cast<char>(i);
  CHECK(byte::decode(byte::encode(all)) == all);
  const std::vector<int> bad{65, 256}, negative{-1};
  check_says(message_of<ms::config_error>([&] { byte::decode(bad); }), {"0 to 255", "got 256", "position 1"});
  check_says(message_of<ms::config_error>([&] { byte::decode(negative); }), {"got -1", "position 0"});
}

TEST_CASE("byte tokenizer: the stream holds a character back until it is whole") {
  ms::tokenizer::byte::stream stream;
  std::vector<std::string> pieces;
  for (const int id : ms::tokenizer::byte::encode("a\u20acb\xe2")) pieces.push_back(stream.push(id));
  CHECK(pieces == std::vector<std::string>{"a", "", "", "\u20ac", "b", ""});
  CHECK(stream.flush() == ms::replacement_character);
  CHECK(stream.flush().empty());
  CHECK(stream.push(0x41) == "A");
  check_says(message_of<ms::config_error>([&] { stream.push(300); }), {"got 300", "position 1"});
}

// --- arrays -----------------------------------------------------------------------------------------------

namespace {

template <class To, class From> To converted(From value) {
  To out{};
  const std::span<const From> in(&value, 1);
  REQUIRE(ms::convert_array(std::span(&out, 1), ms::dtype_of<From>(), std::as_bytes(in)));
  return out;
}

}  // namespace

TEST_CASE("every F16 becomes the float that its bits mean") {
  int wrong = 0;
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    double value = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
    if (exponent == 31) value = fraction ? std::nan("") : std::numeric_limits<double>::infinity();
    if (bits & 0x8000) value = -value;
    const auto word = static_cast<std::uint16_t>(bits);
    float out = 0;
    REQUIRE(ms::convert_array(std::span(&out, 1), "F16", std::as_bytes(std::span(&word, 1))));
    const bool right = std::isnan(value) ? std::isnan(out) : out == value && std::signbit(out) == std::signbit(value);
    wrong += !right;
  }
  CHECK(wrong == 0);
}

TEST_CASE("conversions round once, to nearest even") {
  CHECK(converted<float>(0.1) == 0.1f);
  CHECK(converted<double>(0.1f) == static_cast<double>(0.1f));
  CHECK(converted<float>(ms::bf16(1.5f)) == 1.5f);
  CHECK(converted<double>(ms::bf16(-3.0f)) == -3);
  CHECK(converted<ms::bf16>(1.00390625f).bits == 0x3f80);  // 1 + 2^-8: the middle, to even
  CHECK(converted<std::int64_t>(std::int64_t{-5}) == -5);
  // From double, just beside the middle of two bf16, where rounding by way of float would meet a tie.
  dice roll;
  for (int round = 0; round < 2000; ++round) {
    const auto bits = static_cast<std::uint16_t>(roll(0x7f7f));
    ms::bf16 lower, upper;
    lower.bits = bits, upper.bits = static_cast<std::uint16_t>(bits + 1);
    const double middle = (static_cast<double>(float(lower)) + static_cast<double>(float(upper))) / 2;
    const double spacing = static_cast<double>(float(upper)) - static_cast<double>(float(lower));
    const std::uint16_t even = bits % 2 == 0 ? bits : upper.bits;
    CHECK(converted<ms::bf16>(middle).bits == even);
    CHECK(converted<ms::bf16>(middle + spacing * 1e-12).bits == upper.bits);
    CHECK(converted<ms::bf16>(middle - spacing * 1e-12).bits == bits);
    const double ulp = spacing / 65536;  // of a float: the nearest one to these is not the middle
    CHECK(converted<ms::bf16>(middle + 0.9 * ulp).bits == upper.bits);
    CHECK(converted<ms::bf16>(middle - 0.9 * ulp).bits == bits);
    CHECK(converted<ms::bf16>(-middle - spacing * 1e-12).bits == (upper.bits | 0x8000));
    CHECK(converted<ms::bf16>(-middle + spacing * 1e-12).bits == (bits | 0x8000));
  }
  CHECK(converted<ms::bf16>(1e300).bits == 0x7f80);
  CHECK(converted<ms::bf16>(-std::numeric_limits<double>::infinity()).bits == 0xff80);
  CHECK(std::isnan(float(converted<ms::bf16>(std::nan("")))));
  CHECK(converted<ms::bf16>(-0.0).bits == 0x8000);
}

TEST_CASE("whole numbers convert to nothing else") {
  const std::int64_t value = 1;
  float out = 0;
  std::int32_t narrow = 0;
  CHECK_FALSE(ms::convert_array(std::span(&out, 1), "I64", std::as_bytes(std::span(&value, 1))));
  CHECK_FALSE(ms::convert_array(std::span(&narrow, 1), "I64", std::as_bytes(std::span(&value, 1))));
}

// --- safetensors: what is right ---------------------------------------------------------------------------

TEST_CASE("safetensors: a file written by the format's own Python package") {
  // safetensors 0.8.0 and NumPy 2.4.6, from F16 (3), F32 (2, 2), I64 (1), F64 () and F32 (0, 3) arrays.
  const std::string header =
      R"({"__metadata__":{"made by":"numpy"},"steps":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},)"
      R"("scalar":{"dtype":"F64","shape":[],"data_offsets":[8,16]},)"
      R"("grid":{"dtype":"F32","shape":[2,2],"data_offsets":[16,32]},)"
      R"("none":{"dtype":"F32","shape":[0,3],"data_offsets":[32,32]},)"
      R"("half":{"dtype":"F16","shape":[3],"data_offsets":[32,38]}}       )";
  const std::string data =
      "\xf9\xff\xff\xff\xff\xff\xff\xff\0\0\0\0\0\0\x04\x40\0\0\x80\x3f\0\0\0\x40\0\0\x40\x40\0\0\x88\xc0"
      "\0\x3e\0\xc0\xff\x7b"s;
  REQUIRE(header.size() == 336);
  const scratch dir;
  put(dir / "numpy.safetensors", raw(header, data));
  const ms::safetensors_file file(dir / "numpy.safetensors");

  CHECK(file.metadata() == std::map<std::string, std::string>{{"made by", "numpy"}});
  std::vector<std::string> names;
  for (const ms::array_info& info : file.arrays()) names.push_back(info.name);
  CHECK(names == std::vector<std::string>{"steps", "scalar", "grid", "none", "half"});
  const ms::array_info* const grid = file.find("grid");
  REQUIRE(grid);
  CHECK(grid->dtype == "F32");
  CHECK(grid->shape == std::vector<std::int64_t>{2, 2});
  CHECK(grid->offset == 8 + 336 + 16);
  CHECK(grid->bytes == 16);
  CHECK(file.find("no such") == nullptr);

  std::vector<float> four(4), three(3), one(1);
  file.read("grid", {2, 2}, std::span(four));
  CHECK(four == std::vector<float>{1, 2, 3, -4.25f});
  file.read("half", {3}, std::span(three));
  CHECK(three == std::vector<float>{1.5f, -2, 65504});
  file.read("scalar", {}, std::span(one));
  CHECK(one[0] == 2.5f);
  file.read("none", {0, 3}, std::span<float>());
  std::vector<std::int64_t> steps(1);
  file.read("steps", {1}, std::span(steps));
  CHECK(steps[0] == -7);
  std::vector<ms::bf16> narrow(4);
  file.read("grid", {2, 2}, std::span(narrow));
  CHECK(float(narrow[3]) == -4.25f);
}

TEST_CASE("safetensors: what is read is what was written") {
  const scratch dir;
  dice roll;
  for (int round = 0; round < 12; ++round) {
    const std::size_t count = roll(12);
    std::vector<std::vector<float>> floats;
    std::vector<std::vector<double>> doubles;
    std::vector<std::vector<ms::bf16>> halves;
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t rows = roll(5), cols = roll(9);
      std::vector<double> values(rows * cols);
      for (double& v : values) v = roll.draws.normal(1, 0, roll.rolled++);
      doubles.push_back(values);
      floats.emplace_back(values.begin(), values.end());
      halves.emplace_back();
      for (const float v : floats.back()) halves.back().push_back(ms::bf16(v));
      doubles.back().resize(values.size());
    }
    ms::safetensors_writer writer;
    writer.metadata("round", ms::text(round));
    writer.metadata("quote \" and \\ and \n and \u20ac", "\t\0"s);
    const auto name = [](std::size_t i, const char* kind) { return ms::text("layers.", i, ".", kind, " \"\u00e9\""); };
    const auto extents = [](std::size_t n) { return std::vector<std::int64_t>{1, static_cast<std::int64_t>(n)}; };
    for (std::size_t i = 0; i < count; ++i) {
      writer.add<ms::bf16>(name(i, "h"), extents(halves[i].size()), halves[i]);
      writer.add<float>(name(i, "f"), extents(floats[i].size()), floats[i]);
      writer.add<double>(name(i, "d"), extents(doubles[i].size()), doubles[i]);
    }
    writer.write(dir / "r.safetensors");

    const ms::safetensors_file file(dir / "r.safetensors");
    CHECK(file.metadata().at("round") == ms::text(round));
    CHECK(file.metadata().at("quote \" and \\ and \n and \u20ac") == "\t\0"s);
    CHECK(file.arrays().size() == 3 * count);
    for (const ms::array_info& info : file.arrays())  // aligned to their elements
      CHECK(info.offset % (info.dtype == "BF16" ? 2 : info.dtype == "F32" ? 4 : 8) == 0);
    if (count > 0) CHECK(file.arrays().front().offset % 64 == 0);
    for (std::size_t i = 0; i < count; ++i) {
      std::vector<float> f(floats[i].size());
      std::vector<double> d(f.size());
      std::vector<ms::bf16> h(f.size());
      file.read(name(i, "f"), extents(f.size()), std::span(f));
      file.read(name(i, "d"), extents(d.size()), std::span(d));
      file.read(name(i, "h"), extents(h.size()), std::span(h));
      CHECK(f == floats[i]);
      CHECK(d == doubles[i]);
      CHECK(std::equal(h.begin(), h.end(), halves[i].begin(), [](auto a, auto b) { return a.bits == b.bits; }));
      file.read(name(i, "d"), extents(f.size()), std::span(f));  // F64 as float
      CHECK(f == floats[i]);
    }
  }
}

TEST_CASE("safetensors: arrays need not be aligned, sorted or named politely") {
  const scratch dir;
  const std::string data = "\x07\0\0\x80\x3f\0\0\0\x40"s;  // one byte, then the floats 1 and 2
  put(dir / "u", raw(R"({"":{"data_offsets":[1,9],"shape":[2],"dtype":"F32"},)"
                     R"( "\u0001\ud83d\ude00" : {"dtype":"U8","shape":[],"data_offsets":[0,1]} } )",
                     data));
  const ms::safetensors_file file(dir / "u");
  CHECK(file.arrays().front().name == "\x01\U0001F600");
  std::vector<float> two(2);
  file.read("", {2}, std::span(two));
  CHECK(two == std::vector<float>{1, 2});

  put(dir / "none", raw("{}"));
  const ms::safetensors_file nothing(dir / "none");
  CHECK(nothing.arrays().empty());
  CHECK(nothing.metadata().empty());
  // Arrays without elements share their place with the next one, whichever the header names first.
  put(dir / "zero", raw(R"({"full":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                        R"("zero":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})",
                        "x"));
  CHECK(ms::safetensors_file(dir / "zero").arrays().front().name == "zero");
  put(dir / "nibbles", raw(R"({"n":{"dtype":"F4","shape":[3,2],"data_offsets":[0,3]}})", "abc"));
  CHECK(ms::safetensors_file(dir / "nibbles").find("n")->bytes == 3);
}

TEST_CASE("safetensors: an opened file may be moved") {
  const scratch dir;
  const std::vector<float> values{1, 2, 3};
  ms::safetensors_writer writer;
  writer.add<float>("v", {3}, values);
  writer.write(dir / "m");
  ms::safetensors_file first(dir / "m");
  const ms::safetensors_file second(std::move(first));
  std::vector<float> out(3);
  second.read("v", {3}, std::span(out));
  CHECK(out == values);
  // An array_info that belongs elsewhere cannot reach outside the file.
  check_says(message_of([&] { second.bytes({.name = "w", .dtype = "F32", .shape = {}, .offset = 1, .bytes = ~0ul}); }),
             {"\"w\"", "not of this file"});
}

TEST_CASE("safetensors: reading what does not fit names file, tensor, expected and got") {
  const scratch dir;
  const std::vector<float> values{1, 2, 3, 4, 5, 6};
  const std::vector<std::int64_t> steps{1};
  ms::safetensors_writer writer;
  writer.add<float>("w", {2, 3}, values);
  writer.add<std::int64_t>("steps", {1}, steps);
  writer.write(dir / "m");
  const ms::safetensors_file file(dir / "m");
  const std::string path = (dir / "m").string();
  std::vector<float> six(6), five(5), one(1);
  check_says(message_of([&] {
               file.read("v", {2, 3}, std::span(six));
             }),
             {path, "expected a tensor \"v\"", "2 others"});
  check_says(message_of([&] {
               file.read("w", {3, 2}, std::span(six));
             }),
             {path, "tensor \"w\"", "expected shape (3, 2)", "got (2, 3)"});
  check_says(message_of([&] { file.read("w", {6}, std::span(six)); }), {"expected shape (6)", "got (2, 3)"});
  check_says(message_of<ms::shape_error>([&] {
               file.read("w", {2, 3}, std::span(five));
             }),
             {path, "\"w\"", "room for 6", "got 5"});
  check_says(message_of([&] { file.read("steps", {1}, std::span(one)); }),
             {path, "\"steps\"", "convert to F32", "got I64"});
}

TEST_CASE("safetensors writer: what cannot be written is refused when it is added") {
  const std::vector<float> values{1, 2, 3, 4};
  const auto bytes = std::as_bytes(std::span(values));
  ms::safetensors_writer w;
  w.add<float>("a", {4}, values);
  using config = ms::config_error;
  using shape = ms::shape_error;
  check_says(message_of<config>([&] { w.add<float>("a", {4}, values); }), {"\"a\"", "added before"});
  check_says(message_of<shape>([&] { w.add<float>("b", {5}, values); }),
             {"\"b\"", "expected 20 bytes", "F32 (5)", "got 16"});
  check_says(message_of<shape>([&] { w.add<float>("b", {-2, -2}, values); }), {"\"b\"", "0 or more", "(-2, -2)"});
  check_says(message_of<config>([&] { w.add("b", "F33", {4}, bytes); }), {"\"b\"", "known element type", "\"F33\""});
  check_says(message_of<config>([&] { w.add<float>("__metadata__", {4}, values); }), {"reserved"});
  check_says(message_of<config>([&] { w.add<float>("b\xff", {4}, values); }), {"tensor name", "UTF-8", "byte 1"});
  check_says(message_of<config>([&] { w.metadata("k", "\xff"); }), {"metadata value", "UTF-8", "byte 0"});
  check_says(message_of<shape>([&] { w.add("b", "U8", std::vector<std::int64_t>(65, 1), bytes.first(1)); }),
             {"\"b\"", "at most 64 extents", "got 65"});
  check_says(message_of([&] { w.add<float>("b", {1ll << 62, 1ll << 62}, values); }), {"\"b\"", "overflows"});
  check_says(message_of([&] { w.add("b", "F4", {3}, bytes); }), {"\"b\"", "whole bytes", "12 bits"});
}

TEST_CASE("safetensors writer: a full disk, a missing folder, and the old file") {
  const scratch dir;
  const std::vector<float> big(1 << 18, 1.0f), small{1};
  ms::safetensors_writer writer, older;
  writer.add<float>("big", {1 << 18}, big);
  older.add<float>("small", {1}, small);
  older.write(dir / "m");
  {
    const small_disk limit(1 << 16);
    check_says(message_of([&] { writer.write(dir / "m"); }), {(dir / "m").string(), "File too large"});
  }
  CHECK(dir.files() == 1);
  CHECK(ms::safetensors_file(dir / "m").find("small"));
  check_says(message_of([&] { writer.write(dir / "missing/m"); }), {"missing/m", "No such file or directory"});
  writer.write(dir / "m");
  CHECK(ms::safetensors_file(dir / "m").find("big"));
}

// --- safetensors: what is wrong ---------------------------------------------------------------------------

TEST_CASE("safetensors: headers that are not one") {
  const scratch dir;
  const std::string path = (dir / "bad.safetensors").string();
  const auto says = [&](const std::string& content, std::initializer_list<std::string_view> parts) {
    put(path, content);
    const std::string message = message_of([&] { ms::safetensors_file file(path); });
    check_says(message, {path});
    check_says(message, parts);
    CHECK(message.size() < path.size() + 400);  // what is quoted from the file is kept short
  };
  says("", {"at least 8 bytes", "got 0"});
  says("1234567", {"at least 8 bytes", "got 7"});
  says(raw("", "", 0), {"expected { as its first byte", "got nothing"});
  says(raw("{}", "", 3), {"truncated", "header of 3 bytes", "got 2"});
  says(raw("{}", "", 100'000'001), {"at most 100000000 bytes", "got 100000001"});
  says("PK\3\4a zip archive", {"at most 100000000 bytes", "is this a safetensors file?"});
  says(std::string(8, '\xff') + "{}", {"got 18446744073709551615"});
  says(raw(" {}"), {"expected { as its first byte", "byte 32"});
  says(raw("[]"), {"expected { as its first byte", "byte 91"});
  says(raw("{"), {"not valid JSON", "unexpected end of input"});
  says(raw("{}}"), {"not valid JSON", "at its byte 3"});
  says(raw("{'a':1}"), {"not valid JSON"});
  says(raw("{\"a\":{\"dtype\":\"F32\",}}"), {"not valid JSON"});
  says(raw("{}\0{\"a\":1}"s), {"zero byte", "at its byte 2"});
  says(raw("{\"a\xff\":{}}"), {"not valid JSON", "UTF-8"});
  says(raw("{\"a\":" + std::string(1000, 'x') + "}"), {"not valid JSON"});
  says(raw("{\"" + std::string(100000, 'x') + "\":3}"), {"\"xxxxxxxx", "…", "expected an object", "number 3"});
  says(raw("{\"" + std::string(100000, 'x')), {"not valid JSON"});
  says(raw("{\"a\":1e999}"), {"not valid JSON", "1e999"});
}

TEST_CASE("safetensors: nesting is refused at the first bracket, however deep it goes") {
  const scratch dir;
  const auto message = [&](const std::string& header) {
    put(dir / "deep", raw(header));
    return message_of([&] { ms::safetensors_file file(dir / "deep"); });
  };
  const std::string brackets(1 << 20, '[');
  check_says(message("{\"a\":" + brackets), {"header: \"a\"", "expected an object", "got an array"});
  check_says(message("{\"a\":{\"shape\":" + brackets),
             {"\"a\"", "\"shape\"", "non-negative whole numbers", "an array"});
  std::string braces = "{\"a\":{\"dtype\":";
  for (int i = 0; i < 100000; ++i) braces += "{\"a\":";
  check_says(message(braces), {"\"a\"", "\"dtype\"", "expected a string", "got an object"});
  // A header of the largest size that is one bracket after another: the file is sparse but for its start.
  put(dir / "huge", raw("[[[[", "", 100'000'000));
  fs::resize_file(dir / "huge", 100'000'008);
  check_says(message_of([&] { ms::safetensors_file file(dir / "huge"); }), {"expected { as its first byte"});
}

TEST_CASE("safetensors: each wrong field is named with what was expected and got") {
  const scratch dir;
  const std::string path = (dir / "bad.safetensors").string();
  const auto says = [&](const std::string& header, std::initializer_list<std::string_view> parts,
                        std::string data = "") {
    put(path, raw(header, data));
    const std::string message = message_of([&] { ms::safetensors_file file(path); });
    INFO(header);
    check_says(message, {path});
    check_says(message, parts);
  };
  const auto tensor = [](const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return "\"t\":{\"dtype\":" + dtype + ",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}";
  };
  const auto one = [&](const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return "{" + tensor(dtype, shape, offsets) + "}";
  };
  const std::string f32 = "\"F32\"", sixteen(16, 'x');
  REQUIRE_NOTHROW([&] { put(path, raw(one(f32, "[4]", "[0,16]"), sixteen)), ms::safetensors_file(path).find("t"); }());

  says(R"({"t":3})", {"header: \"t\"", "expected an object", "got the number 3"});
  says(R"({"t":null})", {"\"t\"", "expected an object", "got null"});
  says(R"({"t":"x"})", {"\"t\"", "expected an object", "string \"x\""});
  says(R"({"t":{}})", {"tensor \"t\"", "expected a dtype", "got none"});
  says(R"({"t":{"dtype":"F32","data_offsets":[0,0]}})", {"tensor \"t\"", "expected a shape"});
  says(R"({"t":{"dtype":"F32","shape":[0]}})", {"tensor \"t\"", "expected a data_offsets"});
  says(R"({"t":{"dtype":"F32","type":1}})", {"tensor \"t\"", "\"type\"", "unknown field"});
  says(R"({"t":{"dtype":"F32","dtype":"F32"}})", {"tensor \"t\"", "\"dtype\"", "appears twice"});
  says("{" + tensor(f32, "[4]", "[0,16]") + "," + tensor(f32, "[4]", "[16,32]") + "}",
       {"header", "the name \"t\"", "appears twice"}, sixteen + sixteen);

  says(one("\"F33\"", "[4]", "[0,16]"), {"\"t\"", "\"dtype\"", "known element type", "\"F33\""}, sixteen);
  says(one("\"f32\"", "[4]", "[0,16]"), {"known element type", "\"f32\""}, sixteen);
  says(one("7", "[4]", "[0,16]"), {"\"dtype\"", "expected a string", "number 7"}, sixteen);

  says(one(f32, "4", "[0,16]"), {"\"shape\"", "expected an array", "number 4"}, sixteen);
  says(one(f32, "[-4]", "[0,16]"), {"\"shape\"", "non-negative whole numbers", "-4"}, sixteen);
  says(one(f32, "[4.0]", "[0,16]"), {"\"shape\"", "whole numbers", "4.0"}, sixteen);
  says(one(f32, "[\"4\"]", "[0,16]"), {"\"shape\"", "whole numbers", "string \"4\""}, sixteen);
  says(one(f32, "[true]", "[0,16]"), {"\"shape\"", "whole numbers", "got true"}, sixteen);
  says(one(f32, "[null]", "[0,16]"), {"\"shape\"", "got null"}, sixteen);
  says(one(f32, "[{}]", "[0,16]"), {"\"shape\"", "got an object"}, sixteen);
  says(one(f32, "[9223372036854775808]", "[0,16]"), {"below 2^63", "9223372036854775808"}, sixteen);
  says(one(f32, "[18446744073709551616]", "[0,16]"), {"whole numbers", "18446744073709551616"}, sixteen);
  says(one(f32, "[4611686018427387904,4]", "[0,16]"), {"\"t\"", "(4611686018427387904, 4) of F32", "overflows"},
       sixteen);
  says(one(f32, "[576460752303423488,1]", "[0,16]"), {"overflows"},
       sixteen);  // 2^59 of 32 bits are 2^64 bits
  says(one(f32, "[0,4611686018427387904,4611686018427387904]", "[0,16]"),
       {"expected 0 bytes", "got data_offsets of 16"}, sixteen);
  says(one("\"F4\"", "[3]", "[0,2]"), {"whole bytes", "12 bits"}, "xx");
  std::string ones = "[1";
  for (int i = 0; i < 64; ++i) ones += ",1";
  says(one(f32, ones + "]", "[0,4]"), {"\"shape\"", "at most 64 extents"}, "xxxx");

  says(one(f32, "[4]", "16"), {"\"data_offsets\"", "expected an array"}, sixteen);
  says(one(f32, "[4]", "[16]"), {"\"data_offsets\"", "expected 2 numbers", "got 1"}, sixteen);
  says(one(f32, "[4]", "[0,16,16]"), {"\"data_offsets\"", "expected 2 numbers", "got more"}, sixteen);
  says(one(f32, "[4]", "[-1,16]"), {"\"data_offsets\"", "non-negative", "got the number -1"}, sixteen);
  says(one(f32, "[4]", "[-0,16]"), {"\"data_offsets\"", "non-negative", "got the number -0"}, sixteen);
  says(one(f32, "[4]", "[16,0]"), {"\"data_offsets\"", "begin <= end", "[16, 0]"}, sixteen);
  says(one(f32, "[4]", "[0,17]"), {"\"t\"", "expected 16 bytes for F32 (4)", "got data_offsets of 17"}, sixteen + "x");
  says(one(f32, "[5]", "[0,16]"), {"\"t\"", "expected 20 bytes for F32 (5)", "of 16"}, sixteen);
  says(one(f32, "[4]", "[1,17]"), {"\"t\"", "begin at 0", "got 1", "hole"}, sixteen + "x");
  says(one(f32, "[4]", "[18446744073709551599,18446744073709551615]"), {"begin at 0", "hole"}, sixteen);
  says(one(f32, "[4]", "[0,16]"), {"\"t\"", "truncated", "up to byte 16", "got 15"}, std::string(15, 'x'));
  says(one(f32, "[4]", "[0,16]"), {"expected 16 bytes of data", "got 17"}, sixteen + "x");
  says("{}", {"expected 0 bytes of data", "got 1"}, "x");
  const auto two = [&](const std::string& second) {
    return "{" + tensor(f32, "[4]", "[0,16]") + ",\"u\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":" + second +
           "}}";
  };
  says(two("[8,16]"), {"\"u\"", "begin at 16", "got 8", "overlap"}, sixteen);
  says(two("[17,25]"), {"\"u\"", "begin at 16", "got 17", "hole"}, sixteen + "123456789");
  says(two("[0,8]"), {"\"t\"", "begin at 8", "got 0", "overlap"}, sixteen);

  says(R"({"__metadata__":3})", {"\"__metadata__\"", "expected an object", "number 3"});
  says(R"({"__metadata__":null})", {"\"__metadata__\"", "expected an object", "null"});
  says(R"({"__metadata__":{"k":1}})", {"__metadata__: \"k\"", "expected a string", "number 1"});
  says(R"({"__metadata__":{"k":{}}})", {"__metadata__: \"k\"", "expected a string", "an object"});
  says(R"({"__metadata__":{"k":["x"]}})", {"__metadata__: \"k\"", "expected a string", "an array"});
  says(R"({"__metadata__":{"k":"1","k":"2"}})", {"__metadata__: \"k\"", "appears twice"});
  says(R"({"__metadata__":{},"__metadata__":{}})", {"\"__metadata__\"", "appears twice"});
}

TEST_CASE("safetensors: a file cut short anywhere, or changed anywhere, gives a file_error or a sound file") {
  const scratch dir;
  const std::vector<float> values{1, 2, 3, 4, 5, 6};
  const std::vector<ms::bf16> halves(3, ms::bf16(0.5f));
  ms::safetensors_writer writer;
  writer.metadata("key", "value");
  writer.add<float>("values", {2, 3}, values);
  writer.add<ms::bf16>("halves", {3}, halves);
  writer.write(dir / "good");
  const std::string good = get(dir / "good");

  for (std::size_t length = 0; length < good.size(); ++length) {
    put(dir / "cut", good.substr(0, length));
    CHECK_THROWS_AS(ms::safetensors_file(dir / "cut"), ms::file_error);
  }
  dice roll;
  int sound = 0, refused = 0;
  for (int round = 0; round < 4000; ++round) {
    std::string changed = good;
    for (std::size_t n = 1 + roll(3); n > 0; --n) {
      const std::size_t at = roll(changed.size());
      const std::size_t kind = roll(5);
      if (kind == 0) changed[at] = static_cast<char>(roll(256));
      else if (kind == 1) changed.erase(at, 1 + roll(4));
      else if (kind == 2) changed.insert(at, 1, "0123456789[]{},:\"-e. "[roll(21)]);
      else if (kind == 3) changed[at] = "0123456789[]{},:\"-e. "[roll(21)];
      else changed.insert(at, changed.substr(roll(changed.size()), roll(40)));
    }
    put(dir / "changed", changed);
    try {
      const ms::safetensors_file file(dir / "changed");
      std::size_t total = 0;
      for (const ms::array_info& info : file.arrays()) {
        for (const std::byte b : file.bytes(info)) total += static_cast<std::size_t>(b) & 1;
        std::vector<float> out(info.bytes * 8 / static_cast<std::size_t>(ms::find_dtype(info.dtype)->bits));
        CHECK(file.find(info.name) == &info);
        if (info.dtype == "F32" || info.dtype == "BF16") file.read(info.name, info.shape, std::span(out));
      }
      CHECK(total <= changed.size());
      ++sound;
    } catch (const ms::file_error& e) {
      CHECK(std::string(e.what()).find((dir / "changed").string()) == 0);
      ++refused;
    }
  }
  CHECK(sound > 100);  // changes of data, names and metadata
  CHECK(refused > 1000);
}

TEST_CASE("exit probes: saved and read back, and refused where a file holds none") {
  const std::filesystem::path path = std::filesystem::temp_directory_path() / "moeskip_test_probe.safetensors";
  const ms::exit_rule::probe p{.threshold = 0.7f, .dim = 2, .weights = {1, 2, 3, 4, 5, 6.5f}};
  ms::save(p, path);
  const ms::exit_rule::probe back = ms::load_probe(path);
  CHECK(back.threshold == p.threshold);
  CHECK(back.dim == p.dim);
  CHECK(back.weights == p.weights);
  CHECK_THROWS_AS(ms::save(ms::exit_rule::probe{}, path), ms::config_error);
  ms::safetensors_writer other;
  other.add("something", {1}, std::span<const float>(p.weights).first(1));
  other.write(path);
  CHECK_THROWS_WITH_AS(ms::load_probe(path), doctest::Contains("expected a tensor exit_probe.weights"), ms::file_error);
  std::filesystem::remove(path);
}
