// Which of the variants of ../models/ a file holds, by the policies in its metadata.
#include <array>

#include "../models/models.hpp"
#include "any_model.hpp"
#include "moeskip/model/checkpoint.hpp"

namespace tool {

namespace {

/// A variant by name, what its files say, and how they are opened. The two of `names` have the same policies and are
/// one type here: files of the second have the value `moe_every` in sizes.moe_every.
struct known_variant {
  const char *names[2], *moe_every;
  ms::string_map policies;
  std::unique_ptr<any_model> (*open_f32)(const std::string&, const std::string&, bool);
  std::unique_ptr<any_model> (*open_bf16)(const std::string&, const std::string&, bool);
};

/// Calls visit(known_variant) for each.
template <class Visit> void for_variants(Visit&& visit) {
  using models::all_moe, models::draft;
  const auto two = [&]<class V>(const char* name, const char* other, const char* moe_every) {
    visit(known_variant{
        {name, other}, moe_every, ms::policy_names<V>(), open_as<V, ms::cpu<float>>, open_as<V, ms::cpu<ms::bf16>>});
  };
  two.template operator()<all_moe>("all_moe", "every_4th", "4");
  two.template operator()<draft>("draft", "all_moe_baseline", "1");
}

std::string value(const ms::string_map& map, const char* key) {
  const auto found = map.find(key);
  return found == map.end() ? std::string() : found->second;
}

std::string name_of(const known_variant& v, const ms::string_map& metadata) {
  return v.names[value(metadata, "sizes.moe_every") == v.moe_every];
}

}  // namespace

std::string complaint(const std::string& path, const ms::string_map& metadata) {
  const std::string format = value(metadata, "format");
  if (format != "moeskip")
    return ms::text(path, ": metadata: format: expected moeskip, got ",
                    format.empty() ? "nothing" : ms::in_quotes(format), ": is this a checkpoint that ms::save wrote?");
  std::string differ;
  bool fits = false;
  for_variants([&](const known_variant& v) {
    const std::string wrong = ms::differences(v.policies, metadata);
    fits |= wrong.empty();
    differ += ms::text("\n  not ", v.names[0], " or ", v.names[1], ": ", wrong);
  });
  if (!fits) return ms::text(path, ": holds a variant that this program was not compiled for:", differ);
  if (const std::string vocab = value(metadata, "sizes.vocab"); vocab != "256")
    return ms::text(path, ": metadata: sizes.vocab: expected 256, since this program takes bytes as tokens, got ",
                    vocab.empty() ? "nothing" : vocab);
  return {};
}

std::unique_ptr<any_model> open(const std::string& path, storage weights) {
  const ms::safetensors_file file(path);
  const ms::string_map metadata = file.metadata();
  if (const std::string wrong = complaint(path, metadata); !wrong.empty()) ms::fail<ms::file_error>(wrong);
  const bool in_file = weights == storage::in_file;
  if (in_file || weights == storage::as_stored) {
    const ms::array_info* const one = file.find("model.embed_tokens.weight");
    weights = one && one->dtype == "BF16" ? storage::bf16 : storage::f32;
  }
  std::unique_ptr<any_model> out;
  for_variants([&](const known_variant& v) {
    if (!out && ms::differences(v.policies, metadata).empty())
      out = (weights == storage::bf16 ? v.open_bf16 : v.open_f32)(path, name_of(v, metadata), in_file);
  });
  return out;
}

}  // namespace tool
