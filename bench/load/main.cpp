// A folder of Hugging Face: how fast it loads, in how much memory, and at what bandwidth the model then decodes.
//   ./run bench load --folder DIR [--cold] [--json FILE]
// config.json chooses the preset; weights become bf16. --cold: the files are taken from the system's cache first, so that
// loading reads the disk. bench/load/make_olmoe.py makes a folder of OLMoE-1B-7B's shape, 13.8 GB.
#include <filesystem>

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

/// Anonymous memory against its bound: the converted model, and one tensor.
template <class V> void memory(bench::report& out, const ms::model<V, bench::weights_in_bf16>& m, double most) {
  const double model = double(m.block().size()) * sizeof(ms::bf16);
  double largest = 0;
  for (const ms::tensor_info& t : m.tensors()) largest = std::max(largest, double(t.size) * sizeof(ms::bf16));
  out.line("load.model", model / 1e9, "GB");
  out.line("load.anonymous", most / 1e9, "GB", "", "the most while loading");
  out.line("load.anonymous_over_bound", most / (model + largest), "ratio", "the model and its largest tensor");
  out.line("load.resident", bench::status_of("VmHWM") / 1e9, "GB", "", "the most, pages of files included");
}

/// Decodes greedily in turn with streaming reads of a gigabyte of the model's memory.
template <class V> void decode(bench::report& out, ms::model<V, bench::weights_in_bf16>& m) {
  const std::size_t model = std::size_t(m.block().size()) * sizeof(ms::bf16);
  const bench::decode_reading r(m, std::min(model, std::size_t{1} << 30), 9);
  out.line("load.read.bandwidth", bench::median(r.reads) / 1e9, "GB/s", "", r.remark);
  out.line("load.decode.tokens_per_second", bench::median(r.rates), "tokens/s");
  out.line("load.decode.bytes_per_token", r.bytes_per_token / 1e6, "MB");
  out.line("load.decode_bandwidth_fraction", bench::median(r.fractions), "ratio", "load.read.bandwidth", r.remark);
}

}  // namespace

int main(int argc, char** argv) {
  return bench::guarded([&] {
    std::string folder;
    if (argc > 2 && std::string(argv[1]) == "--folder") folder = argv[2], argc -= 2, argv += 2;
    MOESKIP_CHECK(ms::config_error, !folder.empty(), "expected --folder DIR first, a folder as transformers writes it");
    const bool cold = argc > 1 && std::string(argv[1]) == "--cold";
    if (cold) --argc, ++argv;
    bench::report out(argc, argv);

    const stored_files files(folder);
    if (cold) std::ranges::for_each(files.paths, bench::drop_from_cache);
    bench::anonymous_peak peak;
    const double start = bench::seconds();
    ms::load_any<bench::weights_in_bf16>(folder, [&](auto m) {
      const double took = bench::seconds() - start, most = peak.stop();
      out.line("load.seconds", took, "s", "", cold ? "from the disk" : "");
      out.line("load.rate", files.bytes / 1e9 / took, "GB/s");
      memory(out, m, most);
      decode(out, m);
    });
  });
}
