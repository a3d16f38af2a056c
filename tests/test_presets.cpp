// Real architectures from their own files: tiny checkpoints with random weights, as transformers writes them, and the
// logits that transformers computes with them (tests/golden/make_pretrained.py).
#include <doctest/doctest.h>

#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "moeskip/model/presets/any.hpp"
#include "moeskip/moeskip.hpp"

namespace ms = moeskip;
namespace fs = std::filesystem;
using B = ms::cpu<float>;

namespace {

const fs::path pretrained = fs::path(MOESKIP_TEST_DATA) / "pretrained";

struct golden {
  int sequences, length;
  std::vector<std::int64_t> inputs;
  std::vector<float> logits;  // (sequences · length, vocab)

  explicit golden(const fs::path& folder, int vocab, const std::string& name = "logits") {
    const ms::safetensors_file file(folder / "golden.safetensors");
    const ms::array_info* info = file.find("inputs");
    REQUIRE(info);
    REQUIRE(info->shape.size() == 2);
    sequences = int(info->shape[0]), length = int(info->shape[1]);
    inputs.resize(std::size_t(sequences * length)), logits.resize(inputs.size() * std::size_t(vocab));
    file.read<std::int64_t>("inputs", {sequences, length}, inputs);
    file.read<float>(name, {sequences * length, vocab}, logits);
  }
};

/// The largest error of any logit over the largest logit, where sequences run `at_once` positions a call.
template <class V> double worst_error(ms::model<V, B>& m, const golden& g, int at_once) {
  const ms::sizes& s = m.sizes();
  ms::arena memory;
  ms::no_tape nothing(memory);
  ms::kv_cache<float> kv(s.layers, g.sequences, s.context, s.kv_groups() * s.head_size());
  double worst = 0, largest = 0;
  for (int first = 0; first < g.length; first += at_once) {
    const auto scope = memory.scope();
    std::vector<int> token, slot, position;
    for (int n = 0; n < int(g.inputs.size()); ++n)
      if (const int at = n % g.length; at >= first && at < first + at_once)
        token.push_back(int(g.inputs[std::size_t(n)])), slot.push_back(n / g.length), position.push_back(at);
    const ms::index_t count = ms::index_t(token.size());
    ms::mat<float> x = memory.take<float>(count, s.dim), normed = memory.take<float>(count, s.dim);
    ms::mat<float> out = memory.take<float>(count, s.vocab);
    m.embed(x, {token.data(), count});
    x = m.run_layers(0, s.layers, x, kv, {{slot.data(), count}, {position.data(), count}}, nothing);
    m.head(out, normed, x, s.layers);
    for (ms::index_t n = 0; n < count; ++n)
      for (int v = 0; v < s.vocab; ++v) {
        const int row = slot[std::size_t(n)] * g.length + position[std::size_t(n)];
        const double want = double(g.logits[std::size_t(row * s.vocab + v)]);
        worst = std::max(worst, std::abs(double(out(n, v)) - want)), largest = std::max(largest, std::abs(want));
        if (!std::isfinite(out(n, v))) return INFINITY;
      }
  }
  return worst / largest;
}

template <class V> void check_logits(ms::model<V, B>& m, const fs::path& folder) {
  const golden g(folder, m.sizes().vocab);
  for (const int at_once : {g.length, 5, 1}) {  // prefill, the verification of drafts, decoding
    const double error = worst_error(m, g, at_once);
    INFO(folder.filename().string(), ", ", at_once, " at once: error ", error);
    CHECK(error < 1e-5);
  }
}

}  // namespace

TEST_CASE("presets: logits are those of transformers") {
  int seen = 0;
  for (const char* name :
       {"llama", "llama_tied", "mixtral", "olmoe", "openmoe", "qwen2_moe", "qwen3_moe", "dots1", "glm4_moe"})
    ms::load_any<B>(pretrained / name, [&](auto model) { check_logits(model, pretrained / name), ++seen; });
  CHECK(seen == 9);
  auto normed = ms::load<ms::presets::glm4_moe_normed, B>(pretrained / "glm4_moe_normed");
  check_logits(normed, pretrained / "glm4_moe_normed");
}

TEST_CASE("presets: OpenMoE with a capacity drops what its published code drops") {
  auto m = ms::load<ms::presets::openmoe_dropping, B>(pretrained / "openmoe");
  const auto& r = m.configuration().router;
  CHECK(r.inference_factor == 0.75f);
  CHECK(r.capacity_at_inference(46, 6) == 12);  // 11, and even
  CHECK(r.capacity_at_inference(2, 6) == 4);
  const golden dropping(pretrained / "openmoe", m.sizes().vocab, "logits_dropping");
  const golden dropless(pretrained / "openmoe", m.sizes().vocab);
  CHECK(worst_error(m, dropping, dropping.length) < 1e-5);
  CHECK(worst_error(m, dropping, 1) > 0.1);  // another text: a call of two tokens has room for both
  CHECK(worst_error(m, dropless, 1) < 1e-5);
  CHECK(ms::generate(m, std::vector<int>{1, 2, 3}, {.max_new_tokens = 5}).tokens.size() == 5);
}

TEST_CASE("presets: OpenMoE's published sizes have as many weights as its files") {
  const auto billions = [](const ms::sizes& s) {
    ms::model_weights<ms::presets::openmoe, float> nothing;  // only measured
    double all = 0;
    const ms::config<ms::presets::openmoe> c{.sizes = s};
    CHECK(ms::valid(c));
    for (const ms::tensor_info& t : ms::bind_weights(c, nothing, static_cast<float*>(nullptr))) all += double(t.size);
    return all / 1e9;
  };
  using ms::presets::openmoe;
  CHECK(billions(openmoe::base_sizes()) == doctest::Approx(0.8003).epsilon(1e-3));
  CHECK(billions(openmoe::sizes_8b()) == doctest::Approx(11.86).epsilon(1e-3));
  CHECK(billions(openmoe::sizes_34b()) == doctest::Approx(46.3).epsilon(2e-3));
}
