// Weights that stay in their file (model/mapped.hpp), under memory that holds no experts from one round to the next:
// behind every token all of them are dropped from memory and from the system's cache. What decoding costs then is
// waiting for the disk, and asking for experts before they are touched is what helps.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <filesystem>

#include "moeskip/eval/windows.hpp"
#include "moeskip/model/mapped.hpp"
#include "speculation.hpp"

namespace bench {

/// The experts of a mapped model, in its file. Throws file_error.
class evictable_experts {
 public:
  template <class M> evictable_experts(const M& m, const std::filesystem::path& file)
      : file_(::open(file.c_str(), O_RDONLY | O_CLOEXEC)), page_(std::size_t(::sysconf(_SC_PAGESIZE))) {
    MOESKIP_CHECK(ms::file_error, file_ >= 0, file.string(), ": cannot open");
    const ms::safetensors_file stored(file);
    for (std::size_t i = 0; i < m.tensors().size(); ++i) {
      const std::string& name = m.tensors()[i].name;
      if (name.find(".mlp.experts.") == name.npos) continue;
      const ms::array_info& where = *stored.find(name);
      add(reinterpret_cast<std::uintptr_t>(m.tensor(i).data()), where.offset, where.bytes);
    }
  }
  evictable_experts(const evictable_experts&) = delete;
  ~evictable_experts() { ::close(file_); }

  /// Seconds that it took.
  double evict() const {
    return time_of([&] {
      for (const piece& p : pieces_) ::madvise(reinterpret_cast<void*>(p.memory), p.bytes, MADV_DONTNEED);
      for (const piece& p : pieces_) ::posix_fadvise(file_, off_t(p.offset), off_t(p.bytes), POSIX_FADV_DONTNEED);
    });
  }
  /// Share of the pages that are in the system's cache.
  double resident() const {
    std::size_t there = 0, all = 0;
    std::vector<unsigned char> pages;
    for (const piece& p : pieces_) {
      pages.resize(p.bytes / page_);
      ::mincore(reinterpret_cast<void*>(p.memory), p.bytes, pages.data());
      for (const unsigned char c : pages) there += c & 1u;
      all += pages.size();
    }
    return double(there) / double(all);
  }

 private:
  struct piece {
    std::uintptr_t memory;
    std::size_t offset, bytes;  // in the file; whole pages
  };
  /// Neighbours are joined: the pages that they share are experts', too.
  void add(std::uintptr_t memory, std::size_t offset, std::size_t bytes) {
    if (!pieces_.empty() && end_ == offset) {
      piece& last = pieces_.back();
      last.bytes = (offset + bytes - last.offset) / page_ * page_;
    } else {
      const std::size_t skipped = (page_ - memory % page_) % page_;
      pieces_.push_back({memory + skipped, offset + skipped, (bytes - skipped) / page_ * page_});
    }
    end_ = offset + bytes;
  }

  int file_;
  std::size_t page_, end_ = 0;
  std::vector<piece> pieces_;
};

/// Plain decoding and the default decoder, asking for nothing, for chosen experts, and for foreseen ones as well.
template <class V> void paging(report& out, const std::string& name, const std::filesystem::path& file,
                               const std::vector<std::vector<int>>& prompts) {
  constexpr int tokens = 64;
  auto m = ms::load_mapped<V, weights_in_bf16>(file);
  const evictable_experts experts(m, file);
  experts.evict();
  if (const double left = experts.resident(); left > 0.01) {
    out.line(name + ".resident", left, "ratio", "experts", "this file system keeps them: paging is not measured");
    return;
  }
  const auto seconds_of = [&](const auto& decoder, ms::ask_ahead asked, const std::vector<int>& prompt) {
    m.ask(asked);
    ms::session<V, weights_in_bf16> s(m);
    double evicting = 0;
    const auto text = ms::generate(s, prompt, {.max_new_tokens = tokens}, decoder,
                                   [&](const ms::emitted&) { evicting += experts.evict(); });
    return text.stats.seconds - evicting;
  };
  constexpr ms::ask_ahead ways[] = {ms::ask_ahead::nothing, ms::ask_ahead::chosen, ms::ask_ahead::foreseen};
  constexpr const char* named[] = {"nothing", "chosen", "foreseen"};
  std::vector<double> base, plain[3], speculating[3];
  for (const std::vector<int>& prompt : prompts) {
    double took[2][3];
    for (int way = 0; way < 3; ++way) {
      took[0][way] = seconds_of(ms::decoder::autoregressive{}, ways[way], prompt);
      took[1][way] = seconds_of(typename V::decoder{}, ways[way], prompt);
    }
    base.push_back(took[0][0]);
    for (int way = 0; way < 3; ++way) {
      plain[way].push_back(took[0][0] / took[0][way]);
      speculating[way].push_back(took[0][0] / took[1][way]);
    }
  }
  out.line(name + ".plain", tokens / median(base), "tokens/s", "", "asking for nothing ahead: the baseline");
  for (int way = 1; way < 3; ++way)
    out.line(ms::text(name, ".plain.", named[way], ".speedup"), median(plain[way]), "ratio", "plain decoding");
  for (int way = 0; way < 3; ++way)
    out.line(ms::text(name, ".speculation.", named[way], ".speedup"), median(speculating[way]), "ratio",
             "plain decoding");
}

}  // namespace bench
