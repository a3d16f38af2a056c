// encode_texts TOKENIZER TEXTS IDS: what make_tokenizers.py --check compares. TEXTS: a safetensors file with `texts` (bytes) and
// `ends`; IDS: for each text the number of its ids, and they, as int32.
//   g++ -std=c++20 -O2 -Iinclude tests/golden/encode_texts.cpp -o encode_texts
#include <cstdio>
#include <fstream>

#include "moeskip/formats/safetensors.hpp"
#include "moeskip/formats/tokenizer/byte_level.hpp"

int main(int argc, char** argv) {
  namespace ms = moeskip;
  try {
    MOESKIP_CHECK(ms::config_error, argc == 4, "expected TOKENIZER TEXTS IDS");
    const ms::json_value document = [&] {
      const ms::mapped_file file(argv[1]);
      return ms::parse_json(file.bytes(), argv[1]);
    }();
    const ms::tokenizer::byte_level tokenizer(document, argv[1]);
    const ms::safetensors_file file(argv[2]);
    const ms::array_info *texts = file.find("texts"), *ends = file.find("ends");
    MOESKIP_CHECK(ms::file_error, texts && ends, argv[2], ": expected arrays texts and ends");
    std::vector<std::uint8_t> bytes(std::size_t(texts->shape[0]));
    std::vector<std::int64_t> stops(std::size_t(ends->shape[0]));
    file.read<std::uint8_t>("texts", {texts->shape[0]}, std::span(bytes));
    file.read<std::int64_t>("ends", {ends->shape[0]}, std::span(stops));
    std::ofstream out(argv[3], std::ios::binary);
    std::int64_t begin = 0;
    for (const std::int64_t end : stops) {
      const std::vector<int> ids =
          tokenizer.encode({reinterpret_cast<const char*>(bytes.data()) + begin, std::size_t(end - begin)});
      const int count = int(ids.size());
      out.write(reinterpret_cast<const char*>(&count), sizeof count);
      out.write(reinterpret_cast<const char*>(ids.data()), std::streamsize(ids.size() * sizeof(int)));
      begin = end;
    }
    MOESKIP_CHECK(ms::file_error, out.flush(), argv[3], ": cannot be written");
  } catch (const std::exception& e) {
    std::fprintf(stderr, "encode_texts: %s\n", e.what());
    return 1;
  }
}
