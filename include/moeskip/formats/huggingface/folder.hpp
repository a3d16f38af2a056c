// A model's folder as transformers writes it: config.json, and its weights in model.safetensors or in several files
// that model.safetensors.index.json lists. Files are mapped, not read.
//   {"metadata": {…}, "weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors", …}}
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "moeskip/formats/json.hpp"
#include "moeskip/formats/mmap.hpp"
#include "moeskip/formats/safetensors_reader.hpp"

namespace moeskip::huggingface {

/// A JSON file. Throws file_error.
inline json_value read_json(const std::filesystem::path& path) {
  const mapped_file map(path);
  return parse_json(map.bytes(), path.string());
}

/// A tensor, and the file that it lies in.
struct stored_tensor {
  const safetensors_file* file = nullptr;
  const array_info* info = nullptr;
  explicit operator bool() const { return info; }
};

class folder {
 public:
  /// Throws file_error where files are missing or damaged, or contradict the index.
  explicit folder(const std::filesystem::path& path) : path_(path) {
    const std::filesystem::path index = path / "model.safetensors.index.json", single = path / "model.safetensors";
    if (std::filesystem::exists(single)) open(single);  // before an index, as in transformers
    else if (std::filesystem::exists(index)) open_listed(index);
    else refuse_others();
  }

  const std::filesystem::path& path() const { return path_; }
  const std::vector<std::unique_ptr<safetensors_file>>& files() const { return files_; }
  stored_tensor find(std::string_view name) const {
    const auto found = tensors_.find(name);
    return found == tensors_.end() ? stored_tensor{} : found->second;
  }
  const std::map<std::string, stored_tensor, std::less<>>& tensors() const { return tensors_; }

 private:
  void open(const std::filesystem::path& path) {
    const safetensors_file& file = *files_.emplace_back(std::make_unique<safetensors_file>(path));
    for (const array_info& a : file.arrays()) {
      const auto [at, is_new] = tensors_.emplace(a.name, stored_tensor{&file, &a});
      MOESKIP_CHECK(file_error, is_new, file.path(), ": tensor ", in_quotes(a.name), ": it is also in ",
                    at->second.file->path());
    }
  }

  void open_listed(const std::filesystem::path& index) {
    const json_value document = read_json(index);
    const json_at map = json_at{&document, index.string() + ": "}["weight_map"];
    std::map<std::string, std::string, std::less<>> listed;  // tensor -> file
    std::set<std::string> names;
    for (const auto& [tensor, file] : map.object()) {
      const json_at entry{&file, text(map.where, ": ", in_quotes(tensor))};
      const std::string& name = entry.string();
      if (name.empty() || name.find_first_of("/\\") != name.npos || name == "." || name == "..")
        entry.wrong("the name of a file in the same folder");
      listed[tensor] = name, names.insert(name);
    }
    for (const std::string& name : names) open(index.parent_path() / name);
    for (const auto& [tensor, file] : listed) {
      const stored_tensor found = find(tensor);
      const std::string expected = (index.parent_path() / file).string();
      MOESKIP_CHECK(file_error, found && found.file->path() == expected, map.where, ": tensor ", in_quotes(tensor),
                    ": expected in ", expected, ", got ", found ? found.file->path() : "no such tensor in any file");
    }
    for (const auto& [tensor, found] : tensors_)
      MOESKIP_CHECK(file_error, listed.contains(tensor), found.file->path(), ": tensor ", in_quotes(tensor),
                    ": expected to be listed in ", index.string(), ", got no such entry");
  }

  [[noreturn]] void refuse_others() const {
    const std::string expected = ": expected model.safetensors or model.safetensors.index.json, got ";
    MOESKIP_CHECK(file_error, std::filesystem::is_directory(path_), path_.string(), ": expected a folder");
    for (const auto& entry : std::filesystem::directory_iterator(path_))
      if (entry.path().extension() == ".bin" || entry.path().extension() == ".pth")
        fail<file_error>(path_.string(), expected, entry.path().filename().string(),
                         ": a pickle can run any code, so it is not read: convert it with "
                         "tools/convert_pickled.py");
    fail<file_error>(path_.string(), expected, "neither");
  }

  std::filesystem::path path_;
  std::vector<std::unique_ptr<safetensors_file>> files_;
  std::map<std::string, stored_tensor, std::less<>> tensors_;
};

}  // namespace moeskip::huggingface
