// Writing safetensors, readable by every program that reads the format. The file appears whole or not at all
// (formats/atomic_file.hpp), its data starts at a multiple of 64 bytes, and wider element types come first,
// so that every array is aligned to its elements although the format allows no gaps.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moeskip/base/check.hpp"
#include "moeskip/base/config.hpp"
#include "moeskip/formats/arrays.hpp"
#include "moeskip/formats/atomic_file.hpp"
#include "moeskip/formats/safetensors_header.hpp"
#include "moeskip/formats/utf8.hpp"

namespace moeskip {

/// Collects arrays, then writes them. Holds pointers: the elements must stay where they are until write()
/// returns.
class safetensors_writer {
 public:
  /// Sets a metadata entry; an older one of the same key is replaced.
  void metadata(std::string key, std::string value) {
    expect_utf8("metadata key", key);
    expect_utf8("metadata value", value);
    metadata_[std::move(key)] = std::move(value);
  }

  /// Throws config_error at a name given twice, shape_error where shape and number of elements disagree.
  template <ArrayElement T> void add(std::string name, std::vector<std::int64_t> shape, std::span<const T> elements) {
    add(std::move(name), dtype_of<T>(), std::move(shape), std::as_bytes(elements));
  }

  /// Any element type, by name: bytes are the little-endian elements, row-major.
  void add(std::string name, std::string_view dtype, std::vector<std::int64_t> shape,
           std::span<const std::byte> bytes) {
    const std::string where = text("safetensors writer: tensor ", in_quotes(name));
    expect_utf8("tensor name", name);
    MOESKIP_CHECK(config_error, name != safetensors::metadata_key, where, ": the name is reserved");
    const dtype_info* const type = find_dtype(dtype);
    MOESKIP_CHECK(config_error, type, where, ": expected a known element type, got ", in_quotes(dtype));
    for (const std::int64_t extent : shape)
      MOESKIP_CHECK(shape_error, extent >= 0, where, ": expected extents of 0 or more, got ", shape_text(shape));
    MOESKIP_CHECK(shape_error, shape.size() <= safetensors::largest_rank, where, ": expected at most ",
                  safetensors::largest_rank, " extents, got ", shape.size());
    const std::size_t size = safetensors::byte_count(where, *type, shape);
    MOESKIP_CHECK(shape_error, bytes.size() == size, where, ": expected ", size, " bytes for ", dtype, " ",
                  shape_text(shape), ", got ", bytes.size());
    MOESKIP_CHECK(config_error, names_.insert(name).second, where, ": the name was added before");
    entries_.push_back(
        {{.name = std::move(name), .dtype = std::string(dtype), .shape = std::move(shape), .offset = 0, .bytes = size},
         bytes.data(),
         type->bits});
  }

  /// Replaces the file at path. Throws file_error, and then leaves what was there, if anything fails.
  void write(const std::filesystem::path& path) const {
    std::vector<const entry*> order;
    for (const entry& e : entries_) order.push_back(&e);
    std::ranges::stable_sort(order, [](const entry* a, const entry* b) { return a->bits > b->bits; });

    const std::string head = header(order);
    const std::uint64_t length = head.size();
    MOESKIP_CHECK(file_error, length <= safetensors::largest_header, path.string(), ": expected a header of at most ",
                  safetensors::largest_header, " bytes, got ", length);
    atomic_file file(path);
    file.write(&length, sizeof length);
    file.write(head.data(), head.size());
    for (const entry* e : order) file.write(e->data, e->info.bytes);
    file.commit();
  }

 private:
  struct entry {
    array_info info;
    const std::byte* data;
    int bits;  // of an element
  };

  static void expect_utf8(std::string_view what, std::string_view value) {
    const std::size_t wrong = utf8_error_offset(value);
    MOESKIP_CHECK(config_error, wrong == value.size(), "safetensors writer: ", what, " ",
                  in_quotes(value.substr(0, wrong)), "…: expected UTF-8, got something else at byte ", wrong);
  }

  static std::string json_string(const std::string& value) { return nlohmann::json(value).dump(); }

  /// The JSON header, padded with spaces.
  std::string header(const std::vector<const entry*>& order) const {
    std::string out = "{";
    if (!metadata_.empty()) {
      out += text(json_string(std::string(safetensors::metadata_key)), ":{");
      for (const auto& [key, value] : metadata_)
        out += text(out.back() == '{' ? "" : ",", json_string(key), ":", json_string(value));
      out += "}";
    }
    std::size_t offset = 0;
    for (const entry* e : order) {
      const array_info& info = e->info;
      out += text(out.size() == 1 ? "" : ",", json_string(info.name), ":{\"dtype\":\"", info.dtype, "\",\"shape\":[");
      for (std::size_t i = 0; i < info.shape.size(); ++i) out += text(i ? "," : "", info.shape[i]);
      out += text("],\"data_offsets\":[", offset, ",", offset + info.bytes, "]}");
      offset += info.bytes;
    }
    out += "}";
    const std::size_t start = sizeof(std::uint64_t) + out.size();
    out.append((start + alignment - 1) / alignment * alignment - start, ' ');
    return out;
  }

  std::map<std::string, std::string> metadata_;
  std::vector<entry> entries_;
  std::set<std::string> names_;
};

}  // namespace moeskip
