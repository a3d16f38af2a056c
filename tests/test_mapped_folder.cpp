// Folders of Hugging Face whose weights are read where they stand: the same model bit for bit, with less memory of its
// own.
#include <doctest/doctest.h>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <thread>

#include "moeskip/model/mapped.hpp"
#include "moeskip/model/presets/any.hpp"
#include "tiny.hpp"

using namespace tests;
namespace fs = std::filesystem;

namespace {

const fs::path pretrained = fs::path(MOESKIP_TEST_DATA) / "pretrained";
using exact = ms::reference<float>;
using fast = ms::cpu<ms::bf16, ms::isa::native>;
using olmoe = ms::presets::olmoe_of<2>;
using olmoe_golden = ms::presets::olmoe;

/// A folder of its own, gone at the end.
struct scratch {
  fs::path path = fs::temp_directory_path() / ms::text("moeskip-mapped-folder-", ::getpid());
  scratch() { fs::remove_all(path), fs::create_directory(path); }
  ~scratch() { fs::remove_all(path); }
};

/// Bits of all weights, and whether they stand in the block.
template <class V, class B> bool same_weights(const ms::model<V, B>& a, const ms::model<V, B>& b) {
  for (std::size_t i = 0; i < a.tensors().size(); ++i) {
    const auto x = a.tensor(i), y = b.tensor(i);
    if (x.size() != y.size() || std::memcmp(x.data(), y.data(), std::size_t(x.size()) * sizeof(x[0])) != 0)
      return false;
  }
  return true;
}
template <class V, class B> bool in_file(const ms::model<V, B>& m, const std::string& name) {
  const auto t = std::ranges::find(m.tensors(), name, &ms::tensor_info::name);
  REQUIRE_MESSAGE(t != m.tensors().end(), name);
  return t->offset == ms::tensor_info::outside;
}

/// Sixteen experts, so that names do not sort as numbers do: 0, 1, 10, …, 15, 2, ….
ms::config<olmoe> shape() {
  ms::config<olmoe> c{
      .sizes = {.layers = 2, .dim = 64, .heads = 4, .ffn = 96, .experts = 16, .vocab = 300, .context = 64}};
  c.router.renormalise = false;
  return c;
}

/// The folder's one file written again as transformers shards it: the tensors from `second_from` on, in the model's
/// order, go to a second file; within a file they are sorted by name.
void shard(const fs::path& folder, const std::string& second_from) {
  fs::rename(folder / "model.safetensors", folder / "before");
  {
    const ms::safetensors_file all(folder / "before");
    std::map<std::string, const ms::array_info*> files[2];
    int at = 0;
    for (const ms::array_info& a : all.arrays()) {
      if (a.name == second_from) at = 1;
      files[at][a.name] = &a;
    }
    std::string listed;
    for (int i = 0; i < 2; ++i) {
      const std::string name = ms::text("model-0000", i + 1, "-of-00002.safetensors");
      ms::safetensors_writer out;
      for (const auto& [tensor, a] : files[i]) {
        out.add(tensor, a->dtype, a->shape, all.bytes(*a));
        listed += ms::text(listed.empty() ? "" : ", ", "\"", tensor, "\": \"", name, "\"");
      }
      out.write(folder / name);
    }
    std::ofstream(folder / "model.safetensors.index.json") << "{\"weight_map\": {" << listed << "}}";
  }
  fs::remove(folder / "before");
}

/// Memory of this process that stands in no file, in bytes.
std::size_t anonymous_memory() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("RssAnon:")) return std::size_t(std::stoul(line.substr(8))) << 10;
  return 0;
}

/// Whole pages within these elements.
struct whole_pages {
  std::byte* first;
  std::size_t bytes;
  template <class T> explicit whole_pages(ms::vec<const T> v) {
    const std::uintptr_t page = std::uintptr_t(::sysconf(_SC_PAGESIZE));
    const std::uintptr_t from = (reinterpret_cast<std::uintptr_t>(v.begin()) + page - 1) / page * page;
    first = reinterpret_cast<std::byte*>(from);
    bytes = reinterpret_cast<std::uintptr_t>(v.end()) / page * page - from;
  }
  /// Whether all of them are in the system's cache; true where the system does not say.
  bool resident() const {
    std::vector<unsigned char> there(bytes / std::size_t(::sysconf(_SC_PAGESIZE)));
    if (::mincore(first, bytes, there.data()) != 0) return true;
    return std::ranges::all_of(there, [](unsigned char c) { return c & 1; });
  }
};

/// The model of shape(), written by `fast` in two shards; gate and up of expert 12 of layer 1 are torn apart.
fs::path sharded(const scratch& s) {
  ms::save_pretrained(ms::model<olmoe, fast>(shape(), ms::seed{3}), s.path / "olmoe");
  shard(s.path / "olmoe", "model.layers.1.mlp.experts.12.up_proj.weight");
  return s.path / "olmoe";
}

template <class V, class B, class Decoder> std::vector<int> text_of(ms::model<V, B>& m, const Decoder& decoder) {
  ms::session<V, B> s(m);
  std::vector<int> out;
  const std::vector<int> prompt = random_tokens(30, m.sizes().vocab, 5);
  for (const ms::emitted& e :
       ms::generate(s, prompt, {.max_new_tokens = 30}, decoder, [](const ms::emitted&) {}).tokens)
    out.push_back(e.token);
  return out;
}

}  // namespace

TEST_CASE("a folder's weights are used where they stand, and the model says the same") {
  const scratch s;
  const fs::path folder = sharded(s);
  auto loaded = ms::load<olmoe, fast>(folder);
  auto mapped = ms::load_mapped<olmoe, fast>(folder);
  CHECK(same_weights(loaded, mapped));
  CHECK(loaded.bytes_in_files() == 0);
  CHECK(loaded.asks() == ms::ask_ahead::nothing);
  CHECK(mapped.asks() == ms::ask_ahead::foreseen);
  std::size_t copied = 0;
  for (const ms::tensor_info& t : mapped.tensors()) {
    const bool joined = t.name.find("q_proj") != t.name.npos || t.name.find("k_proj") != t.name.npos ||
                        t.name.find("v_proj") != t.name.npos;
    const bool torn = t.name == "model.layers.1.mlp.experts.12.gate_proj.weight" ||
                      t.name == "model.layers.1.mlp.experts.12.up_proj.weight";
    CHECK_MESSAGE(in_file(mapped, t.name) == !(joined || torn), t.name);
    if (joined || torn) copied += std::size_t(t.size) * sizeof(ms::bf16);
  }
  CHECK(mapped.bytes_in_files() + copied == std::size_t(loaded.block().size()) * sizeof(ms::bf16));
  const std::vector<int> expected = text_of(loaded, ms::decoder::autoregressive{});
  for (const auto asked : {ms::ask_ahead::nothing, ms::ask_ahead::chosen, ms::ask_ahead::foreseen}) {
    mapped.ask(asked);
    CHECK(text_of(mapped, ms::decoder::autoregressive{}) == expected);
    CHECK(text_of(mapped, ms::speculative_decoder::compose<ms::draft::lookup>{}) == expected);
  }
  const auto moved = std::move(mapped);
  CHECK(same_weights(loaded, moved));
}

TEST_CASE("what a folder of each preset lets be used in place") {
  std::map<std::string, double> shares;
  for (const char* name :
       {"llama", "llama_tied", "mixtral", "olmoe", "openmoe", "qwen2_moe", "qwen3_moe", "dots1", "glm4_moe"}) {
    CAPTURE(name);
    ms::load_any_mapped<exact>(pretrained / name, [&]<class V>(const ms::model<V, exact>& m) {
      CHECK(same_weights(ms::load<V, exact>(pretrained / name), m));
      double all = 0;
      for (const ms::tensor_info& t : m.tensors()) all += double(t.size) * sizeof(float);
      shares[name] = double(m.bytes_in_files()) / all;
      CHECK_FALSE(in_file(m, "model.layers.0.self_attn.q_proj.weight"));
      CHECK(in_file(m, "model.layers.0.self_attn.o_proj.weight"));
      CHECK(in_file(m, "model.embed_tokens.weight"));
      if (std::string_view(name) == "mixtral") {  // w1, w2, w3: the down_proj stands between gate and up
        CHECK(in_file(m, "model.layers.0.mlp.experts.1.down_proj.weight"));
        CHECK_FALSE(in_file(m, "model.layers.0.mlp.experts.1.gate_proj.weight"));
      }
      if (std::string_view(name) == "openmoe")  // transposed
        CHECK_FALSE(in_file(m, "model.layers.1.mlp.experts.0.down_proj.weight"));
      if (std::string_view(name) == "dots1") CHECK_FALSE(in_file(m, "model.layers.1.mlp.gate.e_score_correction_bias"));
    });
  }
  CHECK(shares["mixtral"] == doctest::Approx(0.42).epsilon(0.02));
  CHECK(shares["openmoe"] == doctest::Approx(0.32).epsilon(0.02));
  for (const char* name : {"olmoe", "qwen2_moe", "qwen3_moe", "dots1", "glm4_moe"})
    CHECK_MESSAGE((shares[name] > 0.625 && shares[name] < 0.845), name << ": " << shares[name]);  // ADR 15
}

TEST_CASE("what save_pretrained wrote stands as the model has it") {
  const scratch s;
  const ms::model<olmoe, fast> m(shape(), ms::seed{3});
  ms::save_pretrained(m, s.path / "olmoe");
  const auto mapped = ms::load_mapped<olmoe, fast>(s.path / "olmoe");
  CHECK(mapped.bytes_in_files() == std::size_t(m.block().size()) * sizeof(ms::bf16));
  CHECK(same_weights(m, mapped));
}

TEST_CASE("weights of another type are converted") {
  const scratch s;
  const fs::path folder = sharded(s);
  using wide = ms::cpu<float, ms::isa::native>;
  const auto mapped = ms::load_mapped<olmoe, wide>(folder);
  CHECK(mapped.bytes_in_files() == 0);
  CHECK_NOTHROW(mapped.block());  // as if it had been loaded
  CHECK(same_weights(ms::load<olmoe, wide>(folder), mapped));

  // Norms in f32 beside matrices in bf16.
  ms::save_pretrained(ms::model<olmoe, fast>(shape(), ms::seed{3}), s.path / "mixed");
  std::vector<std::vector<float>> norms;
  norms.reserve(64);
  fs::rename(s.path / "mixed" / "model.safetensors", s.path / "before");
  const ms::safetensors_file before(s.path / "before");
  ms::safetensors_writer out;
  for (const ms::array_info& a : before.arrays()) {
    if (a.name.find("norm") == a.name.npos) {
      out.add(a.name, a.dtype, a.shape, before.bytes(a));
      continue;
    }
    std::vector<float>& values = norms.emplace_back(std::size_t(a.shape[0]));
    before.read<float>(a.name, {a.shape[0]}, std::span(values));
    out.add<float>(a.name, a.shape, values);
  }
  out.write(s.path / "mixed" / "model.safetensors");
  const auto mixed = ms::load_mapped<olmoe, fast>(s.path / "mixed");
  CHECK_FALSE(in_file(mixed, "model.norm.weight"));
  CHECK(in_file(mixed, "model.layers.0.self_attn.q_proj.weight"));
  CHECK(same_weights(ms::load<olmoe, fast>(s.path / "mixed"), mixed));
}

TEST_CASE("a model whose weights stand in files is saved, and refuses what wants them in one block") {
  const scratch s;
  auto mapped = ms::load_mapped<olmoe, fast>(sharded(s));
  ms::save(mapped, s.path / "one.safetensors");
  CHECK(same_weights(ms::load<olmoe, fast>(s.path / "one.safetensors"), mapped));
  ms::save_pretrained(mapped, s.path / "again");
  CHECK(same_weights(ms::load<olmoe, fast>(s.path / "again"), mapped));
  const std::string refused =
      ms::text("expected a model with all weights in one block, got one of which ", mapped.bytes_in_files(),
               " bytes are read where they stand in files: load() copies them together");
  CHECK_THROWS_WITH_AS(mapped.block(), refused.c_str(), ms::config_error);
  CHECK_THROWS_WITH_AS((ms::trainer<olmoe, fast>(mapped, {.steps = 1})), refused.c_str(), ms::config_error);
  CHECK_THROWS_AS(mapped.weights().layers[1].moe.experts.gate_up.together(), ms::config_error);
  CHECK_THROWS_AS((ms::load_mapped<ms::presets::mixtral, fast>(s.path / "olmoe")), ms::file_error);
}

TEST_CASE("an exit with weights of its own begins as a head that stands in a file") {
  struct own_exits : olmoe {
    using exit_head = ms::exit_head::own;
  };
  const scratch s;
  const fs::path folder = sharded(s);
  const auto with_exit = [](auto& c) { c.exits = ms::exits_after(1); };
  const auto mapped = ms::load_pretrained_mapped<own_exits, fast>(folder, with_exit);
  CHECK(in_file(mapped, "lm_head.weight"));
  CHECK_FALSE(in_file(mapped, "model.exits.1.head.weight"));
  CHECK(same_weights(ms::load_pretrained<own_exits, fast>(folder, with_exit), mapped));
}

TEST_CASE("experts fused into one tensor, as transformers 5 holds them, are used in place") {
  const scratch s;
  fs::copy(pretrained / "olmoe", s.path / "olmoe");
  const auto m = ms::load<olmoe_golden, exact>(s.path / "olmoe");
  {
    const ms::safetensors_file before(pretrained / "olmoe" / "model.safetensors");
    ms::safetensors_writer out;
    for (const ms::array_info& a : before.arrays())
      if (a.name.find(".experts.") == a.name.npos) out.add(a.name, a.dtype, a.shape, before.bytes(a));
    for (int l = 0; l < m.layers(); ++l) {
      const auto& experts = m.weights().layers[std::size_t(l)].moe.experts;
      const auto add = [&](const char* name, ms::cube<const float> c) {
        out.add(ms::text("model.layers.", l, ".mlp.experts.", name), {c.extent(0), c.extent(1), c.extent(2)},
                std::span(c.data(), std::size_t(c.size())));
      };
      add("gate_up_proj", experts.gate_up.together()), add("down_proj", experts.down.together());
    }
    out.write(s.path / "olmoe" / "model.safetensors");
  }
  const auto mapped = ms::load_mapped<olmoe_golden, exact>(s.path / "olmoe");
  CHECK(same_weights(m, mapped));
  for (const ms::tensor_info& t : mapped.tensors())
    if (t.name.find(".experts.") != t.name.npos) CHECK_MESSAGE(in_file(mapped, t.name), t.name);
}

TEST_CASE("memory of its own is what was converted; experts are fetched when they are asked for") {
  const scratch s;
  ms::config<olmoe> c = shape();
  c.sizes.dim = 256, c.sizes.ffn = 128, c.sizes.experts = 48;  // 20 MB, a plane of 16 pages or more
  ms::save_pretrained(ms::model<olmoe, fast>(c, ms::seed{3}), s.path / "olmoe");
  shard(s.path / "olmoe", "model.layers.1.mlp.gate.weight");
  const std::size_t before = anonymous_memory();
  auto m = ms::load_mapped<olmoe, fast>(s.path / "olmoe");
  std::size_t all = 0;
  float sum = 0;
  for (std::size_t i = 0; i < m.tensors().size(); ++i) {
    for (const ms::bf16 w : m.tensor(i)) sum += float(w);  // touches every page
    all += std::size_t(m.tensors()[i].size) * sizeof(ms::bf16);
  }
  CHECK(std::isfinite(sum));
  CHECK(m.bytes_in_files() > all * 9 / 10);
  if (before) CHECK(anonymous_memory() < before + (all - m.bytes_in_files()) + all / 4);

  for (std::size_t i = 0; i < m.tensors().size(); ++i)
    if (const whole_pages p(m.tensor(i)); m.tensors()[i].offset == ms::tensor_info::outside && p.bytes) {
      ::madvise(p.first, p.bytes, MADV_RANDOM);  // no neighbours of what is touched
      ::madvise(p.first, p.bytes, MADV_DONTNEED);
    }
  for (const char* name : {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}) {
    const int file = ::open((s.path / "olmoe" / name).c_str(), O_RDONLY);
    ::fsync(file);
    ::posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
    ::close(file);
  }
  const auto& experts = m.weights().layers[1].moe.experts;
  const auto fetched = [&] {
    int whole = 0;
    for (int e = 0; e < c.sizes.experts; ++e) {
      const auto plane = experts.gate_up.plane(e);
      whole += whole_pages(ms::vec<const ms::bf16>(plane.data(), plane.size())).resident();
    }
    return whole;
  };
  if (fetched() > 0) {
    MESSAGE("this file system keeps pages in memory: nothing can be seen here");
    return;
  }
  ms::arena memory;
  ms::session<olmoe, fast> session(m);
  session.prefill(random_tokens(1, c.sizes.vocab, 5));
  const ms::mat<float> x = memory.take<float>(1, c.sizes.dim);
  session.embed(x);
  session.run(0, 1, x, session.position());  // layer 1 does not run
  for (int i = 0; i < 500 && fetched() < 2; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  CHECK(fetched() >= 2);  // top-2
  CHECK(fetched() < c.sizes.experts / 2);
}
