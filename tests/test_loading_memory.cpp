// Loading a folder takes the converted model and little else: anonymous memory is bounded by the model plus one tensor,
// and pages of the file are given back behind each.
// ctest: slow
#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>

#include "moeskip/model/presets/llama.hpp"
#include "moeskip/model/presets/olmoe.hpp"
#include "moeskip/moeskip.hpp"

namespace ms = moeskip;
namespace fs = std::filesystem;

namespace {

/// Bytes of this process that stand in a line of /proc/self/status: RssAnon, what it owns; RssFile and RssShmem, pages
/// of files.
double resident(const std::string& kind) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with(kind + ":")) return std::stod(line.substr(kind.size() + 1)) * 1024;
  FAIL("/proc/self/status has no " << kind);
  return 0;
}

template <class V> ms::config<V> config() {
  ms::config<V> c;
  c.sizes = {.layers = 4, .dim = 384, .heads = 6, .ffn = 1536, .experts = 8, .vocab = 8192, .context = 64};
  if constexpr (std::is_same_v<V, ms::presets::llama>) c.sizes.moe_every = 0;
  else c.router.renormalise = false;
  return c;
}

/// Loads a folder of `Stored` weights as `Loaded` ones, and looks at the process after every tensor.
template <class V, class Stored, class Loaded> void check_loading() {
  const fs::path folder = fs::temp_directory_path() / ms::text("moeskip_loading_", ::getpid());
  ms::save_pretrained(ms::model<V, ms::cpu<Stored>>(config<V>()), folder);
  double largest = 0;  // tensor, as stored or as loaded
  const auto files = [] {
    return resident("RssFile") + resident("RssShmem");
  };  // the latter where they stand in memory
  const double anon = resident("RssAnon"), file = files();
  double most_anon = 0, most_file = 0;
  const auto look = [&](ms::index_t, ms::index_t) {
    most_anon = std::max(most_anon, resident("RssAnon") - anon);
    most_file = std::max(most_file, files() - file);
  };
  const auto m = ms::load_pretrained<V, ms::cpu<Loaded>>(folder, ms::detail::keep_config{}, look);
  fs::remove_all(folder);
  for (const ms::tensor_info& t : m.tensors())
    largest = std::max(largest, double(t.size) * double(std::max(sizeof(Loaded), sizeof(Stored))));
  const double model = double(m.block().size()) * sizeof(Loaded), slack = 4e6;  // tables, and whole huge pages
  INFO("model ", model, " anonymous ", most_anon, " file ", most_file, " largest tensor ", largest);
  CHECK(most_anon <= model + largest + slack);
  CHECK(most_file <= ms::thread_count() * largest + slack);
}

}  // namespace

TEST_CASE("loading: anonymous memory is the converted model plus at most one tensor") {
  check_loading<ms::presets::llama, float, ms::bf16>();
  check_loading<ms::presets::llama, ms::bf16, ms::bf16>();
  check_loading<ms::presets::llama, ms::bf16, float>();
  check_loading<ms::presets::olmoe, ms::bf16, ms::bf16>();
}
