// PROGRAM TOKENIZER TEXTS OUT, what check_tokenizers.py runs. TEXTS: a safetensors file with `texts` (bytes, one after
// the other) and `ends`. OUT gets `ids` and `ends`, and what decodes from them, `texts` and `text_ends`. Prints the
// seconds of one CPU that encoding and decoding took.
#pragma once

#include <cstdio>
#include <ctime>

#include "moeskip/formats/safetensors.hpp"

namespace tests {

namespace ms = moeskip;

/// Lists of unlike length as one: the i-th ends at ends[i].
template <class T> struct run_list {
  std::vector<T> flat;
  std::vector<std::int64_t> ends;
  template <class Run> void add(const Run& run) {
    flat.insert(flat.end(), run.begin(), run.end());
    ends.push_back(std::int64_t(flat.size()));
  }
  std::span<const T> operator[](std::size_t i) const {
    const std::int64_t begin = i ? ends[i - 1] : 0;
    return std::span(flat).subspan(std::size_t(begin), std::size_t(ends[i] - begin));
  }
};

template <class T> std::vector<T> all_of(const ms::safetensors_file& file, const std::string& name) {
  const ms::array_info* found = file.find(name);
  MOESKIP_CHECK(ms::file_error, found, file.path(), ": expected an array ", name, ", got none");
  std::vector<T> out(std::size_t(found->shape.at(0)));
  file.read<T>(name, found->shape, std::span(out));
  return out;
}

template <class Work> double cpu_seconds(Work&& work) {
  const std::clock_t begin = std::clock();
  work();
  return double(std::clock() - begin) / CLOCKS_PER_SEC;
}

template <class Tokenizer> int encode_texts(int argc, char** argv) {
  try {
    MOESKIP_CHECK(ms::config_error, argc == 4, "expected TOKENIZER TEXTS OUT");
    const Tokenizer tokenizer{std::filesystem::path(argv[1])};
    const ms::safetensors_file file(argv[2]);
    const run_list<std::uint8_t> in{all_of<std::uint8_t>(file, "texts"), all_of<std::int64_t>(file, "ends")};
    run_list<std::int32_t> ids;
    run_list<std::uint8_t> decoded;
    const double encoding = cpu_seconds([&] {
      for (std::size_t i = 0; i < in.ends.size(); ++i)
        ids.add(tokenizer.encode({reinterpret_cast<const char*>(in[i].data()), in[i].size()}));
    });
    const double decoding = cpu_seconds([&] {
      for (std::size_t i = 0; i < in.ends.size(); ++i) decoded.add(tokenizer.decode(ids[i]));
    });
    ms::safetensors_writer out;
    const auto add = [&](const char* name, const char* ends, const auto& list) {
      out.add(name, {std::int64_t(list.flat.size())}, std::span(list.flat));
      out.add(ends, {std::int64_t(list.ends.size())}, std::span(list.ends));
    };
    add("ids", "ends", ids);
    add("texts", "text_ends", decoded);
    out.write(argv[3]);
    std::printf("%g %g\n", encoding, decoding);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s: %s\n", argv[0], e.what());
    return 1;
  }
  return 0;
}

}  // namespace tests
