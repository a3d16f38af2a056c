// Folders of real models that do not fit, are damaged or mean harm: every one is refused with a message that names
// file, field or tensor, what was expected and what was got. And what is saved can be loaded again.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "moeskip/model/loading_bar.hpp"
#include "moeskip/model/presets/any.hpp"
#include "moeskip/moeskip.hpp"

namespace ms = moeskip;
namespace fs = std::filesystem;
using B = ms::reference<float>;  // loading alone: no kernel is compiled

namespace {

const fs::path pretrained = fs::path(MOESKIP_TEST_DATA) / "pretrained";

/// An empty folder that is gone afterwards.
struct scratch {
  fs::path path = fs::temp_directory_path() / ms::text("moeskip_pretrained_", ::getpid());
  scratch() { fs::remove_all(path), fs::create_directory(path); }
  ~scratch() { fs::remove_all(path); }
  /// A copy of a golden folder.
  fs::path copy(const std::string& name) const {
    fs::remove_all(path / name);
    fs::copy(pretrained / name, path / name);
    return path / name;
  }
};

std::string contents(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}
void write(const fs::path& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }
void replace(const fs::path& path, const std::string& what, const std::string& by) {
  std::string text = contents(path);
  const std::size_t at = text.find(what);
  REQUIRE_MESSAGE(at != text.npos, what);
  write(path, text.replace(at, what.size(), by));
}

/// The message of a load that must fail.
template <class V> std::string refusal(const fs::path& folder) {
  try {
    ms::load<V, B>(folder);
  } catch (const ms::file_error& e) {
    return e.what();
  }
  return "accepted";
}
void told(const std::string& message, const std::string& part) {
  INFO(message);
  CHECK(message.find(part) != message.npos);
}

/// The arrays of a file written again under what `edit` makes of them.
template <class Edit> void rewrite(const fs::path& path, Edit&& edit) {
  const fs::path before = path.string() + ".before";
  fs::rename(path, before);
  const ms::safetensors_file file(before);
  ms::safetensors_writer out;
  edit(file, out);
  out.write(path);
  fs::remove(before);
}
void keep(const ms::safetensors_file& file, ms::safetensors_writer& out, const ms::array_info& a) {
  out.add(a.name, a.dtype, a.shape, file.bytes(a));
}

template <class V> bool same_weights(const ms::model<V, B>& a, const ms::model<V, B>& b) {
  return std::equal(a.block().begin(), a.block().end(), b.block().begin(), b.block().end());
}

struct own_exits : ms::presets::olmoe {
  using exit_head = ms::exit_head::own;
};
struct low_rank_exits : ms::presets::llama {
  using exit_head = ms::exit_head::low_rank;
};

}  // namespace

TEST_CASE("presets: what is saved is loaded again, as a folder and as a checkpoint") {
  const scratch s;
  int seen = 0;
  for (const char* name :
       {"llama", "llama_tied", "mixtral", "olmoe", "openmoe", "qwen2_moe", "qwen3_moe", "dots1", "glm4_moe"})
    ms::load_any<B>(pretrained / name, [&]<class V>(const ms::model<V, B>& m) {
      ms::save_pretrained(m, s.path / name);
      const auto folder = ms::load<V, B>(s.path / name);
      CHECK(same_weights(m, folder));
      ms::config<V> read = m.configuration();
      read.sizes.head_dim = read.sizes.head_size();  // it is written out
      CHECK(folder.configuration() == read);
      ms::save(m, s.path / "one.safetensors");
      const auto file = ms::load<V, B>(s.path / "one.safetensors");
      CHECK(same_weights(m, file));
      CHECK(file.configuration() == m.configuration());
      ++seen;
    });
  CHECK(seen == 9);
}

TEST_CASE("presets: what is saved beside older shards is what is loaded") {
  const scratch s;
  const fs::path folder = s.copy("mixtral");
  REQUIRE(fs::exists(folder / "model.safetensors.index.json"));
  auto m = ms::load<ms::presets::mixtral, B>(folder);
  for (auto& w : m.block()) w *= 2;
  ms::save_pretrained(m, folder);
  CHECK(same_weights(ms::load<ms::presets::mixtral, B>(folder), m));
}

TEST_CASE("presets: experts fused into one tensor, as transformers 5 holds them") {
  const scratch s;
  const fs::path folder = s.copy("olmoe");
  const auto alone = ms::load<ms::presets::olmoe, B>(folder);
  const ms::sizes& z = alone.sizes();
  const std::size_t E = std::size_t(z.experts), F = std::size_t(z.ffn), D = std::size_t(z.dim);
  std::vector<std::vector<float>> fused;
  fused.reserve(16);
  rewrite(folder / "model.safetensors", [&](const ms::safetensors_file& file, ms::safetensors_writer& out) {
    for (const ms::array_info& a : file.arrays())
      if (a.name.find(".experts.") == a.name.npos) keep(file, out, a);
    for (int l = 0; l < z.layers; ++l) {
      const std::string p = ms::text("model.layers.", l, ".mlp.experts.");
      std::vector<float>& gate_up = fused.emplace_back(E * 2 * F * D);
      std::vector<float>& down = fused.emplace_back(E * D * F);
      for (std::size_t e = 0; e < E; ++e) {
        const auto part = [&](std::vector<float>& all, std::size_t first) {
          return std::span(all).subspan(first, F * D);
        };
        const std::string of = ms::text(p, e);
        file.read<float>(of + ".gate_proj.weight", {z.ffn, z.dim}, part(gate_up, 2 * e * F * D));
        file.read<float>(of + ".up_proj.weight", {z.ffn, z.dim}, part(gate_up, (2 * e + 1) * F * D));
        file.read<float>(of + ".down_proj.weight", {z.dim, z.ffn}, part(down, e * F * D));
      }
      out.add<float>(p + "gate_up_proj", {z.experts, 2 * z.ffn, z.dim}, gate_up);
      out.add<float>(p + "down_proj", {z.experts, z.dim, z.ffn}, down);
    }
  });
  CHECK(same_weights(alone, ms::load<ms::presets::olmoe, B>(folder)));
}

TEST_CASE("presets: exits with weights of their own begin as the full model's head") {
  const auto with_exit = [](auto& config) { config.exits = ms::exits_after(1), config.sizes.context = 32; };
  const auto m = ms::load_pretrained<own_exits, B>(pretrained / "olmoe", with_exit);
  CHECK(m.sizes().context == 32);
  const auto exit = m.weights().head(1), top = m.weights().head(2);
  CHECK(exit.norm.data() != top.norm.data());
  CHECK(std::equal(exit.norm.begin(), exit.norm.end(), top.norm.begin()));
  CHECK(std::equal(exit.projection.begin(), exit.projection.end(), top.projection.begin()));
  const auto small = ms::load_pretrained<low_rank_exits, B>(pretrained / "llama_tied", with_exit);
  const auto low = small.weights().head(1);
  CHECK(std::any_of(low.down.begin(), low.down.end(), [](float w) { return w != 0; }));
  CHECK(std::all_of(low.up.begin(), low.up.end(), [](float w) { return w == 0; }));
  CHECK_THROWS_AS(ms::save_pretrained(m, fs::temp_directory_path() / "moeskip_never"), ms::config_error);
}

TEST_CASE("presets: a wrong one lists every field that differs") {
  const std::string wrong = refusal<ms::presets::qwen3_moe>(pretrained / "llama");
  for (const char* part :
       {"config.json: not what presets::qwen3_moe expects: ",
        R"(architectures: expected Qwen3MoeForCausalLM, got "LlamaForCausalLM")",
        R"(model_type: expected "qwen3_moe", got "llama")",
        "moe_intermediate_size: expected a whole number of 1 or more, got nothing", "num_experts_per_tok: expected 8"})
    told(wrong, part);
  told(refusal<ms::presets::mixtral_of<3>>(pretrained / "mixtral"), "num_experts_per_tok: expected 3, got 2");
  const scratch s;
  const fs::path folder = s.copy("llama");
  const auto any = [&] {
    try {
      ms::load_any<B>(folder, [](auto&&) {});
    } catch (const ms::file_error& e) {
      return std::string(e.what());
    }
    return std::string("accepted");
  };
  replace(folder / "config.json", "LlamaForCausalLM", "DeepseekV3ForCausalLM");
  told(any(),
       "got \"DeepseekV3ForCausalLM\" (multi-head latent attention is not supported; the experts of DeepSeek-V3");
  replace(folder / "config.json", "DeepseekV3ForCausalLM", "SwitchTransformersForConditionalGeneration");
  told(any(), "(encoders are not supported; its routing is router::switch_top1)");
  replace(folder / "config.json", "SwitchTransformersForConditionalGeneration", "MambaForCausalLM");
  told(any(), "expected one of LlamaForCausalLM, MixtralForCausalLM, ");
}

TEST_CASE("presets: what the experts of DeepSeek-V3 stand under is looked at") {
  const scratch s;
  const auto with = [&]<class V>(std::type_identity<V>, const char* name, const char* what, const char* by) {
    const fs::path folder = s.copy(name);
    replace(folder / "config.json", what, by);
    return refusal<V>(folder);
  };
  const std::type_identity<ms::presets::dots1> dots1;
  const std::type_identity<ms::presets::glm4_moe> glm;
  told(with(dots1, "dots1", R"("n_group": 4)", R"("n_group": 4, "kv_lora_rank": 512)"),
       "kv_lora_rank: expected null, got 512");
  told(with(dots1, "dots1", R"("n_group": 4)", R"("n_group": 5)"), "must be a multiple of router.groups");
  told(with(dots1, "dots1", R"("n_group": 4)", R"("n_group": 4, "scoring_func": "softmax")"),
       R"(scoring_func: expected "sigmoid", got "softmax")");
  told(with(dots1, "dots1", R"("first_k_dense_replace": 1)", R"("first_k_dense_replace": 4)"),
       "sizes.moe_from must be from 0 to sizes.layers");
  told(with(dots1, "dots1", R"("first_k_dense_replace": 1)", R"("first_k_dense_replace": -1)"),
       "first_k_dense_replace: expected a whole number of 0 or more, got -1");
  told(with(dots1, "dots1", R"("full_attention")", R"("sliding_attention")"),
       R"(layer_types[0]: expected "full_attention", got "sliding_attention")");
  const fs::path older = s.copy("dots1");
  replace(older / "config.json", R"("layer_types")", R"("others")");
  CHECK(refusal<ms::presets::dots1>(older) == "accepted");
  replace(older / "config.json", R"("max_window_layers": 62)", R"("max_window_layers": 2)");
  CHECK(refusal<ms::presets::dots1>(older) == "accepted");
  replace(older / "config.json", R"("sliding_window": null)", R"("sliding_window": 9)");
  told(refusal<ms::presets::dots1>(older), "max_window_layers: expected no less than num_hidden_layers");
  told(with(glm, "glm4_moe", R"("partial_rotary_factor": 0.5)", R"("partial_rotary_factor": 0.1)"),
       "partial_rotary_factor: expected a part of head_dim");
  told(with(glm, "glm4_moe", R"("partial_rotary_factor": 0.5)", R"("partial_rotary_factor": 1.5)"),
       "partial_rotary_factor: expected a part of head_dim");
  told(refusal<ms::presets::glm4_moe>(pretrained / "glm4_moe_normed"), "use_qk_norm: expected false, got true");
  // What files of either do not say means different things.
  const fs::path silent_dots = s.copy("dots1"), silent_glm = s.copy("glm4_moe");
  for (const fs::path& folder : {silent_dots, silent_glm})
    replace(folder / "config.json", R"("norm_topk_prob": true,)", "");
  CHECK_FALSE(ms::read_pretrained_config<ms::presets::dots1>(silent_dots).router.base.renormalise);
  CHECK(ms::read_pretrained_config<ms::presets::glm4_moe>(silent_glm).router.base.renormalise);
}

TEST_CASE("presets: a selection bias far from 0 keeps its differences in bf16") {
  const scratch s;
  const fs::path folder = s.copy("dots1");
  const auto biases = [&] {
    const auto m = ms::load<ms::presets::dots1, ms::cpu<ms::bf16>>(folder);
    std::vector<float> out;
    for (const ms::bf16 b : m.weights().layers[1].moe.selection_bias) out.push_back(float(b));
    return out;
  };
  const auto exact = ms::load<ms::presets::dots1, B>(folder);
  const auto bias = exact.weights().layers[1].moe.selection_bias;
  double mean = 0;
  for (const float b : bias) mean += double(b) / double(bias.size());
  const std::vector<float> near = biases();
  std::vector<std::vector<float>> moved;
  moved.reserve(8);
  rewrite(folder / "model.safetensors", [&](const ms::safetensors_file& file, ms::safetensors_writer& out) {
    for (const ms::array_info& a : file.arrays()) {
      if (!a.name.ends_with("e_score_correction_bias")) {
        keep(file, out, a);
        continue;
      }
      std::vector<float>& values = moved.emplace_back(std::size_t(a.shape[0]));
      file.read<float>(a.name, {a.shape[0]}, std::span(values));
      for (float& v : values) v += 100;
      out.add<float>(a.name, a.shape, values);
    }
  });
  CHECK(moved.size() == 2);
  const std::vector<float> far = biases();
  for (std::size_t i = 0; i < far.size(); ++i) {
    const double want = double(bias[ms::index_t(i)]) - mean;
    CHECK(double(near[i]) == doctest::Approx(want).epsilon(1. / 256));
    CHECK(std::abs(double(far[i]) - want) < 0.004 * std::abs(want) + 1e-4);
  }
}

TEST_CASE("presets: fields of config.json that make no sense") {
  const scratch s;
  const auto with = [&](const char* what, const char* by) {
    const fs::path folder = s.copy("llama");
    replace(folder / "config.json", what, by);
    return refusal<ms::presets::llama>(folder);
  };
  told(with(R"("hidden_size": 24)", R"("hidden_size": 0)"), "hidden_size: expected a whole number of 1 or more, got 0");
  told(with(R"("hidden_size": 24)", R"("hidden_size": -24)"), "got -24");
  told(with(R"("hidden_size": 24)", R"("hidden_size": 18446744073709551616)"), "hidden_size: expected a whole number");
  told(with(R"("hidden_size": 24)", R"("hidden_size": "24")"), R"(got "24")");
  told(with(R"("hidden_size": 24)", R"("hidden_size": 24, "hidden_size": 24)"),
       R"(the name "hidden_size" appears twice)");
  told(with(R"("hidden_size": 24)", R"("hidden_size": NaN)"), "expected JSON, got something else at byte");
  told(with(R"("num_hidden_layers": 2)", R"("num_hidden_layers": 1000000000)"), "sizes.layers must be from 1 to 127");
  told(with(R"("vocab_size": 37)", R"("vocab_size": 1000000000)"), "no extent may be negative or above 16,777,216");
  told(with(R"("head_dim": 12)", R"("head_dim": 11)"), "sizes.head_dim must be even");
  told(with(R"("num_key_value_heads": 2)", R"("num_key_value_heads": 3)"), "multiple of sizes.kv_heads");
  told(with(R"("hidden_act": "silu")", R"("hidden_act": "gelu")"), R"(hidden_act: expected "silu", got "gelu")");
  told(with(R"("attention_bias": false)", R"("attention_bias": true)"), "attention_bias: expected false, got true");
  told(with(R"("rope_type": "llama3")", R"("rope_type": "yarn")"),
       R"(rope_parameters.rope_type: expected "default" or "llama3", got "yarn")");
  told(with(R"("factor": 8.0)", R"("factor": 0.0)"), "sizes.stretch: expected factor >= 1");
  told(with(R"("rms_norm_eps": 1e-05)", R"("rms_norm_eps": -1)"), "sizes.norm_eps must be between 0 and 1");
  told(with("{\n", "[{\n"), "expected JSON");
  told(with("{\n", std::string(100000, '[').c_str()), "nested at most 64 deep");
  const fs::path folder = s.copy("llama");
  write(folder / "config.json", "");
  told(refusal<ms::presets::llama>(folder), "config.json: expected JSON, got an empty file");
  write(folder / "config.json", std::string("{}\0{}", 5));
  told(refusal<ms::presets::llama>(folder), "got a zero byte at byte 2");
  write(folder / "config.json", "[]");
  told(refusal<ms::presets::llama>(folder), "config.json: expected an object, got a list of 0");
  fs::remove(folder / "config.json");
  told(refusal<ms::presets::llama>(folder), "config.json: cannot open: No such file or directory");
}

TEST_CASE("presets: weights that are missing, left over or of another shape or type") {
  const scratch s;
  const auto edited = [&](const char* name, auto&& edit) {
    const fs::path folder = s.copy(name);
    rewrite(folder / "model.safetensors", [&](const ms::safetensors_file& file, ms::safetensors_writer& out) {
      for (const ms::array_info& a : file.arrays()) edit(file, out, a);
    });
    return folder;
  };
  const std::vector<std::byte> bytes(37 * 24 * 4);
  told(refusal<ms::presets::llama>(edited("llama",
                                          [](auto& file, auto& out, const ms::array_info& a) {
                                            if (a.name != "model.norm.weight") keep(file, out, a);
                                          })),
       R"(expected a tensor "model.norm.weight", got none of that name)");
  told(refusal<ms::presets::llama>(edited("llama",
                                          [&](auto& file, auto& out, const ms::array_info& a) {
                                            if (a.name != "lm_head.weight") return keep(file, out, a);
                                            out.add(a.name, "F32", {24, 37}, std::span(bytes));
                                          })),
       R"(tensor "lm_head.weight": expected shape (37, 24), got (24, 37))");
  told(refusal<ms::presets::llama>(edited("llama",
                                          [&](auto& file, auto& out, const ms::array_info& a) {
                                            if (a.name != "lm_head.weight") return keep(file, out, a);
                                            out.add(a.name, "I32", a.shape, std::span(bytes));
                                          })),
       R"(tensor "lm_head.weight": expected elements that convert to F32, got I32)");
  const auto one_more = [&](const char* extra) {
    return [&, extra](auto& file, auto& out, const ms::array_info& a) {
      keep(file, out, a);
      if (a.name == "model.norm.weight") out.add(extra, "F32", a.shape, file.bytes(a));
    };
  };
  told(refusal<ms::presets::llama>(edited("llama", one_more("model.layers.0.self_attn.q_proj.bias"))),
       R"(unexpected tensor "model.layers.0.self_attn.q_proj.bias")");
  CHECK(refusal<ms::presets::llama>(edited("llama", one_more("model.layers.0.self_attn.rotary_emb.inv_freq"))) ==
        "accepted");
  CHECK(refusal<ms::presets::glm4_moe>(edited("glm4_moe", one_more("model.layers.3.eh_proj.weight"))) == "accepted");
  told(refusal<ms::presets::glm4_moe>(edited("glm4_moe", one_more("model.layers.4.eh_proj.weight"))),
       R"(unexpected tensor "model.layers.4.eh_proj.weight")");
  const auto tied = [&](bool repeated) {
    return edited("llama_tied", [&, repeated](auto& file, auto& out, const ms::array_info& a) {
      keep(file, out, a);
      if (a.name == "model.embed_tokens.weight")
        out.add("lm_head.weight", "F32", a.shape, repeated ? file.bytes(a) : std::span(bytes).first(a.bytes));
    });
  };
  CHECK(refusal<ms::presets::llama>(tied(true)) == "accepted");
  told(refusal<ms::presets::llama>(tied(false)), R"(unexpected tensor "lm_head.weight")");
}

TEST_CASE("presets: shards and their index") {
  const scratch s;
  const auto with = [&](const char* what, const char* by) {
    const fs::path folder = s.copy("mixtral");
    replace(folder / "model.safetensors.index.json", what, by);
    return refusal<ms::presets::mixtral>(folder);
  };
  const char *first = R"("lm_head.weight": "model-00001-of-00008.safetensors")", *name = "model.safetensors.index.json";
  told(with(first, R"("lm_head.weight": "../../etc/passwd")"), "expected the name of a file in the same folder, got");
  told(with(first, R"("lm_head.weight": "")"), "expected the name of a file in the same folder");
  told(with(first, R"("lm_head.weight": "missing.safetensors")"), "missing.safetensors: cannot open: No such file");
  told(with(first, R"("lm_head.weight": 7)"), R"(weight_map: "lm_head.weight": expected a string, got 7)");
  told(with(first, R"("lm_head.weight": "model-00003-of-00008.safetensors")"),
       R"(tensor "lm_head.weight": expected in)");
  told(with("\"lm_head.weight\"", "\"other\""), "got no such tensor in any file");
  told(with("\"weight_map\"", "\"map\""), "weight_map: expected an object, got nothing");
  const fs::path folder = s.copy("mixtral");
  fs::copy(folder / "model-00001-of-00008.safetensors", folder / "again.safetensors");
  replace(folder / name, first, R"("lm_head.weight": "again.safetensors")");
  told(refusal<ms::presets::mixtral>(folder), "it is also in");
  fs::remove(folder / name);
  told(refusal<ms::presets::mixtral>(folder),
       "expected model.safetensors or model.safetensors.index.json, got neither");
  write(folder / "pytorch_model.bin", "pickle");
  told(refusal<ms::presets::mixtral>(folder), "got pytorch_model.bin: a pickle can run any code, so it is not read");
}

TEST_CASE("presets: files cut short anywhere, or changed anywhere, give an error or a sound model") {
  const scratch s;
  const fs::path folder = s.copy("mixtral");
  int refused = 0, tried = 0;
  for (const char* name : {"config.json", "model.safetensors.index.json", "model-00005-of-00008.safetensors"}) {
    const std::string sound = contents(folder / name);
    const std::size_t end = std::min<std::size_t>(sound.size(), 2000);
    for (std::size_t at = 0; at < end; at += 29)
      for (const int change : {0, 1, 2}) {
        std::string damaged = sound;
        if (change == 0) damaged.resize(at);
        else damaged[at] = char(change == 1 ? 0xFF : damaged[at] ^ 1);
        write(folder / name, damaged);
        ++tried, refused += refusal<ms::presets::mixtral>(folder) != "accepted";
      }
    write(folder / name, sound);
  }
  CHECK(refused > tried / 2);
  CHECK(refusal<ms::presets::mixtral>(folder) == "accepted");
}

TEST_CASE("presets: loading tells how far it is, and a bar shows it on a terminal") {
  std::vector<ms::index_t> done;
  ms::index_t all = 0;
  ms::load_any<B>(
      pretrained / "mixtral", [](auto m) { CHECK(m.layers() > 0); },
      [&](ms::index_t now, ms::index_t of) { done.push_back(now), all = of; });
  CHECK(done.size() > 10);
  CHECK(std::ranges::is_sorted(done));
  CHECK(done.front() > 0);
  CHECK(done.back() == all);

  const int terminal = ::posix_openpt(O_RDWR | O_NOCTTY);
  REQUIRE(terminal >= 0);
  REQUIRE((::grantpt(terminal) == 0 && ::unlockpt(terminal) == 0));
  std::FILE* const screen = std::fopen(::ptsname(terminal), "w");
  REQUIRE(screen);
  const auto seen = [&] {
    char text[4096];
    ::fcntl(terminal, F_SETFL, O_NONBLOCK);
    const auto size = ::read(terminal, text, sizeof text);
    return std::string(text, std::size_t(std::max<long>(size, 0)));
  };
  const auto wait = [] { std::this_thread::sleep_for(std::chrono::milliseconds(310)); };
  {
    ms::loading_bar bar("folder", screen);
    bar(10, 100);
    CHECK(seen().empty());  // what is quick needs no bar
    wait(), bar(60, 100);
    const std::string drawn = seen();
    CHECK(drawn.find("folder") != std::string::npos);
    CHECK(drawn.find("60 %") != std::string::npos);
    bar(100, 100);
    CHECK(seen() == "\r\x1b[K");
  }
  CHECK(seen().empty());
  {
    ms::loading_bar bar("folder", screen);
    wait(), bar(60, 100);
    CHECK(!seen().empty());
  }
  CHECK(seen() == "\r\x1b[K");  // also where loading fails
  std::fclose(screen), ::close(terminal);

  const scratch s;
  std::FILE* const file = std::fopen((s.path / "no_terminal").c_str(), "w");
  ms::loading_bar(std::string("folder"), file)(1, 2);
  std::fclose(file);
  CHECK(contents(s.path / "no_terminal").empty());
}
