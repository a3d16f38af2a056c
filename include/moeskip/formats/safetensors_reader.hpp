// Reading safetensors: an 8-byte header length, a JSON header that names arrays, then their bytes.
// Everything that the format promises is checked before an array is handed out, so that a damaged or hostile
// file gives a file_error and nothing else. Source: the format section of the safetensors README
// (huggingface/safetensors).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <initializer_list>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moeskip/base/check.hpp"
#include "moeskip/formats/arrays.hpp"
#include "moeskip/formats/mmap.hpp"
#include "moeskip/formats/safetensors_header.hpp"

namespace moeskip {

class safetensors_file {
 public:
  /// Maps and checks the file. Time and memory go with the header; the data is not touched.
  explicit safetensors_file(const std::filesystem::path& path, mapping access = mapping::read_only)
      : map_(path, access) {
    const std::size_t data_start = parse_header();
    check_layout(map_.size() - data_start);
    for (array_info& info : arrays_) info.offset += data_start;
  }

  const std::string& path() const { return map_.path(); }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  /// In the order of their bytes in the file.
  const std::vector<array_info>& arrays() const { return arrays_; }
  /// nullptr where there is no such array.
  const array_info* find(std::string_view name) const {
    const auto found = by_name_.find(name);
    return found == by_name_.end() ? nullptr : &arrays_[found->second];
  }

  /// The stored bytes of one of arrays(), possibly unaligned; valid as long as this object.
  std::span<const std::byte> bytes(const array_info& info) const {
    MOESKIP_CHECK(file_error, info.offset <= map_.size() && info.bytes <= map_.size() - info.offset, path(), ": array ",
                  in_quotes(info.name), " is not of this file");
    return map_.bytes().subspan(info.offset, info.bytes);
  }

  /// Gives back the memory that reading an array took; a hint.
  void drop(const array_info& info) const { map_.drop(info.offset, info.bytes); }

  /// The array of this name. Throws file_error unless it is there and has this shape.
  const array_info& expect(std::string_view name, std::span<const std::int64_t> shape) const {
    const array_info* const info = find(name);
    MOESKIP_CHECK(file_error, info, path(), ": expected a tensor ", in_quotes(name), ", got ", arrays_.size(),
                  " others");
    MOESKIP_CHECK(file_error, std::ranges::equal(info->shape, shape), path(), ": tensor ", in_quotes(name),
                  ": expected shape ", shape_text(shape), ", got ", shape_text(info->shape));
    return *info;
  }

  /// Copies an array that must have this name, shape and number of elements, converting between F64, F32, F16
  /// and BF16.
  template <ArrayElement T>
  void read(std::string_view name, std::span<const std::int64_t> shape, std::span<T> out) const {
    const array_info& info = expect(name, shape);
    const std::size_t count = info.bytes * 8 / static_cast<std::size_t>(find_dtype(info.dtype)->bits);
    MOESKIP_CHECK(shape_error, out.size() == count, path(), ": tensor ", in_quotes(name), ": expected room for ", count,
                  " elements, got ", out.size());
    MOESKIP_CHECK(file_error, convert_array(out, info.dtype, bytes(info)), path(), ": tensor ", in_quotes(name),
                  ": expected elements that convert to ", dtype_of<T>(), ", got ", info.dtype);
  }
  template <ArrayElement T>
  void read(std::string_view name, std::initializer_list<std::int64_t> shape, std::span<T> out) const {
    read(name, std::span(shape.begin(), shape.size()), out);
  }

 private:
  /// Fills metadata_, arrays_ and by_name_; returns where the data starts, in bytes from the start of the
  /// file.
  std::size_t parse_header() {
    std::uint64_t length = 0;
    MOESKIP_CHECK(file_error, map_.size() >= sizeof length, path(), ": expected at least 8 bytes, got ", map_.size());
    std::memcpy(&length, map_.bytes().data(), sizeof length);
    MOESKIP_CHECK(file_error, length <= safetensors::largest_header, path(), ": expected a header of at most ",
                  safetensors::largest_header, " bytes, got ", length, " (is this a safetensors file?)");
    const std::size_t rest = map_.size() - sizeof length;
    MOESKIP_CHECK(file_error, length <= rest, path(), ": truncated: expected a header of ", length, " bytes, got ",
                  rest);
    const char* const begin = reinterpret_cast<const char*>(map_.bytes().data()) + sizeof length;
    const char* const end = begin + length;
    MOESKIP_CHECK(file_error, begin != end && *begin == '{', path(), ": header: expected { as its first byte, got ",
                  begin == end ? "nothing" : text("byte ", static_cast<int>(static_cast<unsigned char>(*begin))));
    // The parser would take a zero byte for the end and overlook what follows.
    const char* const zero = std::find(begin, end, '\0');
    MOESKIP_CHECK(file_error, zero == end, path(), ": header: expected JSON, got a zero byte at its byte ",
                  zero - begin);
    safetensors::header_parser parser(path());
    nlohmann::json::sax_parse(begin, end, &parser);
    metadata_ = std::move(parser.metadata);
    arrays_ = std::move(parser.arrays);
    by_name_ = std::move(parser.by_name);
    return sizeof length + static_cast<std::size_t>(length);
  }

  /// Sorts arrays_ by their bytes and checks that they fill the data without holes or overlap. Offsets are
  /// still relative to the data.
  void check_layout(std::size_t data_size) {
    const auto end = [](const array_info& a) { return a.offset + a.bytes; };
    std::ranges::stable_sort(arrays_, [&](const array_info& a, const array_info& b) {
      return a.offset != b.offset ? a.offset < b.offset : end(a) < end(b);
    });
    std::size_t next = 0;
    for (std::size_t i = 0; i < arrays_.size(); ++i) {
      const array_info& info = arrays_[i];
      by_name_.find(info.name)->second = i;
      const std::string where = text(path(), ": tensor ", in_quotes(info.name));
      const std::size_t size = safetensors::byte_count(where, *find_dtype(info.dtype), info.shape);
      MOESKIP_CHECK(file_error, info.bytes == size, where, ": expected ", size, " bytes for ", info.dtype, " ",
                    shape_text(info.shape), ", got data_offsets of ", info.bytes);
      MOESKIP_CHECK(file_error, info.offset == next, where, ": expected its data to begin at ", next, ", got ",
                    info.offset, info.offset > next ? " (a hole)" : " (an overlap)");
      MOESKIP_CHECK(file_error, end(info) <= data_size, where, ": truncated: expected data up to byte ", end(info),
                    ", got ", data_size);
      next = end(info);
    }
    MOESKIP_CHECK(file_error, next == data_size, path(), ": expected ", next, " bytes of data, got ", data_size);
  }

  mapped_file map_;
  std::map<std::string, std::string> metadata_;
  std::vector<array_info> arrays_;
  std::map<std::string, std::size_t, std::less<>> by_name_;
};

}  // namespace moeskip
