// Any bytes as config.json of each preset: they are refused with a file_error, or give a config that is valid or says
// why it is not. An index of shards is the same kind of document.
#include "moeskip/model/presets/any.hpp"
#include "moeskip/moeskip.hpp"

namespace ms = moeskip;

template <class V> void configure(const ms::json_value& document) {
  try {
    ms::huggingface::config_file file(document, "config.json");
    const ms::config<V> c = V::huggingface::template configure<V>(file);
    file.finish(V::huggingface::name);
    if (ms::valid(c)) (void)V::huggingface::describe(c);
  } catch (const ms::file_error&) {}
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const ms::json_value document = ms::parse_json(std::as_bytes(std::span(data, size)), "config.json");
    configure<ms::presets::llama>(document), configure<ms::presets::mixtral>(document);
    configure<ms::presets::olmoe>(document), configure<ms::presets::openmoe>(document);
    configure<ms::presets::qwen2_moe>(document), configure<ms::presets::qwen3_moe>(document);
    configure<ms::presets::dots1>(document), configure<ms::presets::glm4_moe>(document);
  } catch (const ms::file_error&) {}
  return 0;
}
