// The text: a file, or moeskip's own headers, docs, examples and tests. The last tenth is held out.
#pragma once

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "moeskip/base/check.hpp"
#include "moeskip/formats/text.hpp"
#include "moeskip/formats/tokenizer/byte.hpp"
#include "shape.hpp"

namespace demo {

struct corpus {
  std::string name;
  std::vector<int> training, held_out;  // byte tokens
  std::string beginning;                // of the held-out text: a prompt
};

/// The project's own text files below `root`, each behind its name, in sorted order.
inline std::string own_sources(const std::filesystem::path& root) {
  namespace fs = std::filesystem;
  std::vector<fs::path> files;
  const auto collect = [&](const char* folder, const char* extension) {
    if (!fs::is_directory(root / folder)) return;
    for (const fs::directory_entry& entry : fs::recursive_directory_iterator(root / folder))
      if (entry.is_regular_file() && entry.path().extension() == extension) files.push_back(entry.path());
  };
  collect("include", ".hpp"), collect("docs", ".md"), collect("examples", ".cpp"), collect("tests", ".cpp");
  if (fs::is_regular_file(root / "README.md")) files.push_back(root / "README.md");
  MOESKIP_CHECK(ms::file_error, !files.empty(), root.string(),
                ": expected moeskip's sources, found none; give a text with --corpus");
  std::sort(files.begin(), files.end());
  std::string out;
  for (const fs::path& file : files) {
    if (fs::is_empty(file)) continue;
    out += "// " + fs::relative(file, root).string() + "\n" + ms::read_text(file) + "\n";
  }
  return out;
}

/// At most `longest` bytes from the first whole line on, up to the end of a word.
inline std::string first_words(std::string_view text, std::size_t longest) {
  text.remove_prefix(std::min(text.find_first_not_of("\n", text.find('\n')), text.size()) % text.size());
  std::string_view some = text.substr(0, longest);
  if (some.size() < text.size()) some = some.substr(0, std::max<std::size_t>(some.find_last_of(" \n"), 1));
  while (!ms::is_utf8(some)) some.remove_suffix(1);  // no space in it: cut between two characters
  return std::string(some);
}

/// Throws file_error for a text that cannot be read, and config_error for one that is too short.
inline corpus read_corpus(const std::string& file, const std::filesystem::path& root, const shape& s) {
  const std::string text = file.empty() ? own_sources(root) : ms::read_text(file);
  const std::size_t batch = std::size_t(s.sequences) * std::size_t(s.length) + 1, window = std::size_t(s.length) + 1;
  const std::size_t need = std::max(batch * 10 / 9 + 1, window * 10);
  const std::string name = file.empty() ? "moeskip's own sources" : file;
  MOESKIP_CHECK(ms::config_error, text.size() >= need, name, ": is too short: expected at least ", need,
                " bytes (one training batch, and one window to validate on), got ", text.size());
  std::size_t split = text.size() - text.size() / 10;
  while ((text[split] & 0xC0) == 0x80) --split;  // between two characters
  const std::string_view all = text;
  return {name, ms::tokenizer::byte::encode(all.substr(0, split)), ms::tokenizer::byte::encode(all.substr(split)),
          first_words(all.substr(split), std::size_t(std::min(96, s.model.sizes.context / 4)))};
}

}  // namespace demo
