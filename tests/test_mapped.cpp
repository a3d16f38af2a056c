// Models whose weights stay in their file.
#include <doctest/doctest.h>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <thread>

#include "moeskip/model/mapped.hpp"
#include "tiny.hpp"

using namespace tests;
namespace fs = std::filesystem;

namespace {

template <class W> using cpu = ms::cpu<W, ms::isa::native>;

struct plain : ms::variant {};
struct following : ms::variant {
  using router = ms::router::segment<ms::router::top_k<2>, 2>;
};
struct biased : ms::variant {
  using router = ms::router::biased<ms::router::top_k<2>>;
};

/// Extents that are multiples of 64 where a file has no gaps: 12 MB in bf16, most of it experts.
ms::config<plain> shape() {
  return {
      .sizes =
          {.layers = 4, .dim = 128, .heads = 4, .kv_heads = 2, .ffn = 128, .experts = 32, .vocab = 128, .context = 64},
      .exits = ms::exits_every(2, 4)};
}

/// A file of its own, gone at the end.
struct temporary {
  fs::path path;
  explicit temporary(const std::string& name)
      : path(fs::temp_directory_path() / ms::text("moeskip-mapped-", ::getpid(), "-", name)) {}
  ~temporary() { fs::remove(path); }
};

std::vector<char> contents(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

template <class E = ms::file_error, class F> std::string message_of(F&& f) {
  try {
    f();
  } catch (const E& e) {
    return e.what();
  }
  return "nothing was thrown";
}

template <class V, class B, class Decoder>
std::vector<int> text_of(ms::model<V, B>& m, ms::ask_ahead asked, const Decoder& decoder) {
  m.ask(asked);
  ms::session<V, B> s(m);
  std::vector<int> out;
  const std::vector<int> prompt = random_tokens(9, m.sizes().vocab, 5);
  for (const ms::emitted& e :
       ms::generate(s, prompt, {.max_new_tokens = 40}, decoder, [](const ms::emitted&) {}).tokens)
    out.push_back(e.token);
  return out;
}

/// Memory of this process that stands in no file, in bytes.
std::size_t anonymous_memory() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("RssAnon:")) return std::size_t(std::stoul(line.substr(8))) << 10;
  return 0;
}

/// Pages of [from, from + bytes) in the system's cache, and how many there are; all of them where the system does not
/// say.
std::pair<int, int> resident(const void* from, std::size_t bytes) {
  const std::size_t page = std::size_t(::sysconf(_SC_PAGESIZE));
  const std::uintptr_t first = (reinterpret_cast<std::uintptr_t>(from) + page - 1) / page * page;
  const std::uintptr_t last = (reinterpret_cast<std::uintptr_t>(from) + bytes) / page * page;
  std::vector<unsigned char> there((last - first) / page);
  if (::mincore(reinterpret_cast<void*>(first), last - first, there.data()) != 0) std::ranges::fill(there, 1);
  int count = 0;
  for (const unsigned char c : there) count += c & 1;
  return {count, int(there.size())};
}

}  // namespace

TEST_CASE_TEMPLATE("a mapped model says what a loaded one says", W, float, ms::bf16) {
  const temporary file("same");
  {
    const ms::model<plain, cpu<W>> m(shape(), ms::seed{3});
    ms::save(m, file.path);
  }
  auto loaded = ms::load<plain, cpu<W>>(file.path);
  auto mapped = ms::load_mapped<plain, cpu<W>>(file.path);
  CHECK(loaded.asks() == ms::ask_ahead::nothing);
  CHECK(mapped.asks() == ms::ask_ahead::foreseen);
  const fixed_length speculation{.draft = {.exit_layer = 2}};
  const std::vector<int> expected = text_of(loaded, ms::ask_ahead::nothing, ms::decoder::autoregressive{});
  for (const auto asked : {ms::ask_ahead::nothing, ms::ask_ahead::chosen, ms::ask_ahead::foreseen}) {
    CAPTURE(int(asked));
    CHECK(text_of(mapped, asked, ms::decoder::autoregressive{}) == expected);
    CHECK(text_of(mapped, asked, speculation) == expected);
    // Advice says nothing of where weights stand.
    CHECK(text_of(loaded, asked, ms::decoder::autoregressive{}) == expected);
  }
}

TEST_CASE("batches of a mapped model, and routers that follow the token before") {
  const temporary file("batch");
  const ms::config<following> c{.sizes = shape().sizes, .exits = shape().exits};
  ms::save(ms::model<following, cpu<ms::bf16>>(c, ms::seed{3}), file.path);
  auto loaded = ms::load<following, cpu<ms::bf16>>(file.path);
  auto mapped = ms::load_mapped<following, cpu<ms::bf16>>(file.path);
  std::vector<std::vector<int>> prompts;
  for (std::uint64_t i = 0; i < 5; ++i) prompts.push_back(random_tokens(4 + int(i), c.sizes.vocab, 20 + i));
  const fixed_length speculation{.draft = {.exit_layer = 2}};
  ms::batch_session<following, cpu<ms::bf16>> batch(mapped, 3);
  const auto made = batch.generate(prompts, {.max_new_tokens = 20}, speculation);
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    CAPTURE(i);
    ms::session<following, cpu<ms::bf16>> alone(loaded);
    const auto expected = ms::generate(alone, prompts[i], {.max_new_tokens = 20}, ms::decoder::autoregressive{},
                                       [](const ms::emitted&) {});
    REQUIRE(made[i].tokens.size() == expected.tokens.size());
    for (std::size_t n = 0; n < expected.tokens.size(); ++n) CHECK(made[i].tokens[n].token == expected.tokens[n].token);
  }
}

TEST_CASE("weights are read where they stand, and writing to them leaves the file alone") {
  const temporary file("in-place");
  ms::save(ms::model<plain, cpu<ms::bf16>>(shape(), ms::seed{3}), file.path);
  const std::vector<char> before = contents(file.path);
  const std::size_t anonymous = anonymous_memory();
  auto mapped = ms::load_mapped<plain, cpu<ms::bf16>>(file.path);
  float sum = 0;
  for (const ms::bf16 w : mapped.block()) sum += float(w);  // touches every page
  CHECK(std::isfinite(sum));
  if (anonymous) CHECK(anonymous_memory() < anonymous + before.size() / 4);
  for (ms::bf16& w : mapped.block()) w = ms::bf16(1.f);
  CHECK(contents(file.path) == before);
  CHECK(float(ms::load<plain, cpu<ms::bf16>>(file.path).block()[1000]) != 1);
  auto moved = std::move(mapped);
  CHECK(float(moved.block()[moved.block().size() - 1]) == 1);
}

TEST_CASE("what the next layer would choose is fetched, and nothing else of it") {
  const temporary file("fetched");
  ms::config<plain> c = shape();
  c.sizes.layers = 2, c.exits = {};
  ms::save(ms::model<plain, cpu<ms::bf16>>(c, ms::seed{3}), file.path);
  auto m = ms::load_mapped<plain, cpu<ms::bf16>>(file.path);
  const int descriptor = ::open(file.path.c_str(), O_RDONLY);
  const auto& experts = m.weights().layers[1].moe.experts;
  const auto bytes = std::size_t(experts.gate_up.plane(0).size()) * sizeof(ms::bf16);
  const std::uintptr_t page = std::uintptr_t(::sysconf(_SC_PAGESIZE));
  const std::uintptr_t start = reinterpret_cast<std::uintptr_t>(m.block().data()) / page * page;
  ::madvise(reinterpret_cast<void*>(start), std::size_t(m.block().size()) * sizeof(ms::bf16),
            MADV_RANDOM);  // no neighbours of what is touched
  ::fsync(descriptor);
  ::posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED);
  ::close(descriptor);
  int before = 0;
  for (int e = 0; e < c.sizes.experts; ++e) before += resident(experts.gate_up.plane(e).data(), bytes).first;
  if (before > 0) {
    MESSAGE("this file system keeps pages in memory: nothing can be seen here");
    return;
  }
  ms::arena memory;
  ms::session<plain, cpu<ms::bf16>> s(m);
  s.prefill(random_tokens(1, c.sizes.vocab, 5));
  const ms::mat<float> x = memory.take<float>(1, c.sizes.dim);
  s.embed(x);
  s.run(0, 1, x, s.position());  // layer 1 does not run
  const auto fetched = [&] {
    int whole = 0;
    for (int e = 0; e < c.sizes.experts; ++e) {
      const auto [there, all] = resident(experts.gate_up.plane(e).data(), bytes);
      whole += there == all;
    }
    return whole;
  };
  for (int i = 0; i < 500 && fetched() < 2; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  CHECK(fetched() >= 2);  // top-2
  CHECK(fetched() < c.sizes.experts / 2);
}

TEST_CASE("a file larger than memory can be mapped") {
  const temporary file("sparse");
  std::ofstream(file.path) << "x";
  std::error_code refused;
  fs::resize_file(file.path, std::uintmax_t{1} << 40, refused);
  if (refused) {
    MESSAGE("this file system has no sparse files of a terabyte");
    return;
  }
  const ms::mapped_file mapped(file.path, ms::mapping::copy_on_write);
  CHECK(mapped.bytes()[0] == std::byte{'x'});
  CHECK(mapped.bytes()[mapped.size() - 1] == std::byte{0});
}

TEST_CASE("tensors with gaps behind them in memory are used where they stand, too") {
  const temporary file("gaps");
  const auto check = [&]<class V>(const ms::config<V>& c) {
    ms::save(ms::model<V, cpu<ms::bf16>>(c, ms::seed{3}), file.path);
    auto loaded = ms::load<V, cpu<ms::bf16>>(file.path);
    auto mapped = ms::load_mapped<V, cpu<ms::bf16>>(file.path);
    CHECK(mapped.bytes_in_files() > fs::file_size(file.path) * 9 / 10);
    CHECK(text_of(mapped, ms::ask_ahead::chosen, ms::decoder::autoregressive{}) ==
          text_of(loaded, ms::ask_ahead::nothing, ms::decoder::autoregressive{}));
    CHECK(message_of<ms::config_error>([&] { mapped.block(); }).find("read where they stand") != std::string::npos);
  };
  ms::config<plain> narrow = shape();
  narrow.sizes.dim = 136;  // of norms
  check(narrow);
  ms::config<biased> seven{.sizes = shape().sizes};
  seven.sizes.experts = 7;  // of selection biases, which stand behind all others
  check(seven);
  const ms::safetensors_file written(file.path);
  std::size_t last = 0;
  for (const ms::array_info& a : written.arrays()) {
    if (a.name.ends_with("e_score_correction_bias")) continue;
    CHECK(a.offset % 64 == 0);
    last = std::max(last, a.offset);
  }
  for (const ms::array_info& a : written.arrays())
    if (a.name.ends_with("e_score_correction_bias")) CHECK(a.offset > last);
}

TEST_CASE("what keeps weights from being used where they stand") {
  const temporary file("refused");
  ms::save(ms::model<plain, cpu<float>>(shape(), ms::seed{3}), file.path);
  CHECK(message_of([&] { ms::load_mapped<plain, cpu<ms::bf16>>(file.path); }) ==
        file.path.string() +
            ": tensor \"model.embed_tokens.weight\": expected elements of BF16 that can be used where they stand, got "
            "F32: load() converts them");
  CHECK(message_of([&] { ms::load_mapped<following, cpu<float>>(file.path); }).find("router") != std::string::npos);

  fs::resize_file(file.path, fs::file_size(file.path) - 10);
  CHECK(message_of([&] { ms::load_mapped<plain, cpu<float>>(file.path); }).find("truncated") != std::string::npos);
  fs::remove(file.path);
  CHECK(message_of([&] { ms::load_mapped<plain, cpu<float>>(file.path); }).find("cannot open") != std::string::npos);
}
