// The header of a safetensors file: JSON that names arrays and says where their bytes are.
//   {"__metadata__": {key: text, …}, name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]},
//   …}
// Checked while it is parsed: a damaged or hostile header gives a file_error that names file, tensor and
// field. Source: the format section of the safetensors README (huggingface/safetensors, 2026-05).
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moeskip/base/check.hpp"
#include "moeskip/formats/arrays.hpp"

namespace moeskip {

namespace safetensors {

inline constexpr std::uint64_t largest_header = 100'000'000;  // bytes, from the format
inline constexpr std::size_t largest_rank = 64;               // our own limit (as NumPy's): bounds memory
inline constexpr std::string_view metadata_key = "__metadata__";

/// The bytes that elements of a dtype in a shape take; fails with `where` in front if they overflow or are no
/// whole number (4- and 6-bit types). Extents are not negative.
inline std::size_t byte_count(std::string_view where, const dtype_info& dtype, std::span<const std::int64_t> shape) {
  std::uint64_t bits = static_cast<std::uint64_t>(dtype.bits);
  for (const std::int64_t extent : shape) {
    const std::uint64_t n = static_cast<std::uint64_t>(extent);
    MOESKIP_CHECK(file_error, n == 0 || bits <= std::numeric_limits<std::uint64_t>::max() / n, where, ": shape ",
                  shape_text(shape), " of ", dtype.name, " overflows 64 bits");
    bits *= n;
  }
  MOESKIP_CHECK(file_error, bits % 8 == 0, where, ": shape ", shape_text(shape), " of ", dtype.name,
                " is expected to fill whole bytes, got ", bits, " bits");
  return static_cast<std::size_t>(bits / 8);
}

/// Takes the events of nlohmann's SAX parser, which keeps no tree and does not recurse. Whatever is nested
/// deeper than the format allows is refused at its first bracket. The names of the event functions are
/// nlohmann's.
class header_parser {
 public:
  using json = nlohmann::json;

  explicit header_parser(std::string path) : path_(std::move(path)) {}

  std::map<std::string, std::string> metadata;
  std::vector<array_info> arrays;                           // offset and bytes from data_offsets: relative to the data
  std::map<std::string, std::size_t, std::less<>> by_name;  // index into arrays

  bool start_object(std::size_t) {
    if (state_ == state::file) return enter(state::root);
    if (state_ == state::root && key_ == metadata_key) return enter(state::metadata);
    if (state_ != state::root) wrong("an object");
    arrays.push_back({.name = key_, .dtype = {}, .shape = {}});
    seen_ = {};
    return enter(state::tensor);
  }

  bool key(std::string& name) {
    key_ = name;
    if (state_ == state::root) {
      const bool is_new =
          name == metadata_key ? !std::exchange(seen_metadata_, true) : by_name.emplace(name, arrays.size()).second;
      MOESKIP_CHECK(file_error, is_new, path_, ": header: the name ", in_quotes(name), " appears twice");
    } else if (state_ == state::metadata) {
      MOESKIP_CHECK(file_error, metadata.emplace(name, "").second, where(), " appears twice");
    } else {
      bool* const seen = name == "dtype"          ? &seen_.dtype
                         : name == "shape"        ? &seen_.shape
                         : name == "data_offsets" ? &seen_.offsets
                                                  : nullptr;
      MOESKIP_CHECK(file_error, seen, where(), ": expected dtype, shape or data_offsets, got an unknown field");
      MOESKIP_CHECK(file_error, !std::exchange(*seen, true), where(), " appears twice");
    }
    return true;
  }

  bool end_object() {
    if (state_ == state::tensor) {
      const char* missing = !seen_.dtype ? "dtype" : !seen_.shape ? "shape" : !seen_.offsets ? "data_offsets" : nullptr;
      MOESKIP_CHECK(file_error, !missing, tensor(), ": expected a ", missing, ", got none");
    }
    return enter(state_ == state::root ? state::file : state::root);
  }

  bool start_array(std::size_t) {
    if (state_ == state::tensor && key_ == "shape") return enter(state::shape);
    if (state_ != state::tensor || key_ != "data_offsets") wrong("an array");
    offsets_.clear();
    return enter(state::offsets);
  }

  bool end_array() {
    if (state_ == state::offsets) {
      MOESKIP_CHECK(file_error, offsets_.size() == 2, where(), ": expected 2 numbers, got ", offsets_.size());
      MOESKIP_CHECK(file_error, offsets_[0] <= offsets_[1], where(), ": expected begin <= end, got [", offsets_[0],
                    ", ", offsets_[1], "]");
      arrays.back().offset = static_cast<std::size_t>(offsets_[0]);
      arrays.back().bytes = static_cast<std::size_t>(offsets_[1] - offsets_[0]);
    }
    return enter(state::tensor);
  }

  bool string(std::string& value) {
    if (state_ == state::metadata) return metadata[key_] = std::move(value), true;
    if (state_ != state::tensor || key_ != "dtype") wrong(text("the string ", in_quotes(value)));
    MOESKIP_CHECK(file_error, find_dtype(value), where(), ": expected a known element type, got ", in_quotes(value));
    arrays.back().dtype = std::move(value);
    return true;
  }

  bool number_unsigned(std::uint64_t value) {
    if (state_ == state::shape) {
      std::vector<std::int64_t>& shape = arrays.back().shape;
      MOESKIP_CHECK(file_error, value <= std::numeric_limits<std::int64_t>::max(), where(),
                    ": expected extents below 2^63, got ", value);
      MOESKIP_CHECK(file_error, shape.size() < largest_rank, where(), ": expected at most ", largest_rank,
                    " extents, got more");
      shape.push_back(static_cast<std::int64_t>(value));
    } else if (state_ == state::offsets) {
      MOESKIP_CHECK(file_error, offsets_.size() < 2, where(), ": expected 2 numbers, got more");
      offsets_.push_back(value);
    } else wrong(text("the number ", value));
    return true;
  }

  bool number_integer(std::int64_t value) { wrong(text("the number ", value < 0 ? text(value) : "-0")); }
  bool number_float(double, const std::string& digits) { wrong(text("the number ", digits.substr(0, 40))); }
  bool boolean(bool value) { wrong(value ? "true" : "false"); }
  bool null() { wrong("null"); }
  bool binary(json::binary_t&) { wrong("binary data"); }

  bool parse_error(std::size_t position, const std::string&, const json::exception& problem) {
    // The parser quotes what it read last, which may be the whole header.
    std::string_view reason = problem.what();
    if (const std::size_t start = reason.find("syntax error"); start != reason.npos) reason.remove_prefix(start);
    fail<file_error>(path_, ": header is not valid JSON at its byte ", position, ": ", reason.substr(0, 200));
  }

 private:
  enum class state { file, root, metadata, tensor, shape, offsets };

  bool enter(state next) {
    state_ = next;
    return true;
  }

  std::string tensor() const { return text(path_, ": tensor ", in_quotes(arrays.back().name)); }
  /// The place in the header that messages name.
  std::string where() const {
    switch (state_) {
      case state::file:
        return text(path_, ": header");
      case state::root:
        return text(path_, ": header: ", in_quotes(key_));
      case state::metadata:
        return text(path_, ": ", metadata_key, ": ", in_quotes(key_));
      default:
        return text(tensor(), ": ", in_quotes(key_));
    }
  }

  [[noreturn]] void wrong(std::string_view got) const {
    const std::string_view expected = state_ == state::shape || state_ == state::offsets ? "non-negative whole numbers"
                                      : state_ == state::metadata                        ? "a string"
                                      : state_ != state::tensor                          ? "an object"
                                      : key_ == "dtype"                                  ? "a string"
                                                                                         : "an array";
    fail<file_error>(where(), ": expected ", expected, ", got ", got);
  }

  std::string path_, key_;
  state state_ = state::file;
  struct {
    bool dtype, shape, offsets;
  } seen_{};
  bool seen_metadata_ = false;
  std::vector<std::uint64_t> offsets_;
};

}  // namespace safetensors

}  // namespace moeskip
