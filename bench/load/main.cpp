// A folder of Hugging Face: how fast it loads, in how much memory, and at what bandwidth the model then decodes.
//   ./run bench load --folder DIR [--mapped] [--cold] [--json FILE]
// config.json chooses the preset; weights become bf16. --mapped: they stay in the files where they can. --cold: the
// files are taken from the system's cache first, so that loading reads the disk. bench/load/make_olmoe.py makes a
// folder of OLMoE-1B-7B's shape, 13.8 GB.
#include <algorithm>
#include <filesystem>

#include "moeskip/model/loading_bar.hpp"
#include "moeskip/model/presets/any.hpp"

#include "../decode/bandwidth.hpp"
#include "memory.hpp"

namespace {

namespace ms = moeskip;
namespace fs = std::filesystem;

/// The safetensors files of a folder, and their bytes.
struct stored_files {
  std::vector<fs::path> paths;
  double bytes = 0;

  explicit stored_files(const fs::path& path) {
    const ms::huggingface::folder folder(path);
    for (const std::unique_ptr<ms::safetensors_file>& file : folder.files())
      paths.emplace_back(file->path()), bytes += double(fs::file_size(file->path()));
  }
};

/// Anonymous memory against its bound: the weights that were converted, and one tensor.
template <class V> void memory(bench::report& out, const ms::model<V, bench::weights_in_bf16>& m, double most) {
  double all = 0, largest = 0;
  for (const ms::tensor_info& t : m.tensors()) {
    const double bytes = double(t.size) * sizeof(ms::bf16);
    all += bytes, largest = std::max(largest, bytes);
  }
  const double in_files = double(m.bytes_in_files());
  out.line("load.model", all / 1e9, "GB");
  out.line("load.in_place", in_files / 1e9, "GB", "", "weights that are read where they stand in the files");
  out.line("load.anonymous", most / 1e9, "GB", "", "the most while loading");
  out.line("load.anonymous_over_bound", most / (all - in_files + largest), "ratio",
           "what was converted, and one tensor");
  out.line("load.resident", bench::status_of("VmHWM") / 1e9, "GB", "", "the most, pages of files included");
}

/// Decodes greedily in turn with streaming reads of memory on huge pages, whatever the model's is. Weights in files
/// have been read once, so that nothing needs to be asked for where memory holds them; what asking costs is measured
/// beside it.
template <class V> void decode(bench::report& out, ms::model<V, bench::weights_in_bf16>& m) {
  const ms::buffer<std::byte> memory(ms::index_t{1} << 29);
  for (std::size_t i = 0; i < m.tensors().size(); ++i)  // all of it is in memory from here on
    bench::stream_read(reinterpret_cast<const std::byte*>(m.tensor(i).data()),
                       std::size_t(m.tensor(i).size()) * sizeof(ms::bf16));
  const auto measure = [&](const std::string& name, ms::ask_ahead asked) {
    m.ask(asked);
    const bench::decode_reading r(m, {memory.data(), std::size_t(memory.size())}, 9);
    out.line(name + "read.bandwidth", bench::median(r.reads) / 1e9, "GB/s", "", r.remark);
    out.line(name + "decode.tokens_per_second", bench::median(r.rates), "tokens/s");
    out.line(name + "decode.bytes_per_token", r.bytes_per_token / 1e6, "MB");
    out.line(name + "decode.bandwidth_fraction", bench::median(r.fractions), "ratio", name + "read.bandwidth",
             r.remark);
  };
  measure("load.", ms::ask_ahead::nothing);
  if (m.bytes_in_files() > 0) measure("load.asking.", ms::ask_ahead::foreseen);
}

}  // namespace

int main(int argc, char** argv) {
  return bench::guarded([&] {
    std::string folder;
    bool cold = false, mapped = false;
    for (; argc > 1; --argc, ++argv) {
      const std::string option = argv[1];
      if (option == "--folder" && argc > 2) folder = argv[2], --argc, ++argv;
      else if (option == "--cold") cold = true;
      else if (option == "--mapped") mapped = true;
      else break;
    }
    MOESKIP_CHECK(ms::config_error, !folder.empty(), "expected --folder DIR, a folder as transformers writes it");
    bench::report out(argc, argv);

    const stored_files files(folder);
    if (cold) std::ranges::for_each(files.paths, bench::drop_from_cache);
    bench::anonymous_peak peak;
    const double start = bench::seconds();
    const auto measure = [&](auto m) {
      const double took = bench::seconds() - start, most = peak.stop();
      out.line("load.seconds", took, "s", "", cold ? "files taken from the system's cache before" : "");
      out.line("load.rate", files.bytes / 1e9 / took, "GB/s");
      memory(out, m, most);
      decode(out, m);
    };
    if (mapped) ms::load_any_mapped<bench::weights_in_bf16>(folder, measure, ms::loading_bar(folder));
    else ms::load_any<bench::weights_in_bf16>(folder, measure, ms::loading_bar(folder));
  });
}
