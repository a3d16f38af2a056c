// moeskip inspect: what is in a file, whether or not this program can run it.
#include "command.hpp"
#include "moeskip/model/checkpoint.hpp"

namespace tool {

namespace {

struct options {
  model_options model;
  json_options json;
  bool tensors = false;
};

void print_file(const ms::safetensors_file& file, bool tensors) {
  print("metadata\n");
  std::vector<std::vector<std::string>> rows;
  for (const auto& [key, value] : file.metadata()) rows.push_back({key, value});
  print(table(rows));
  if (!tensors) return;
  print("\ntensors\n");
  rows.clear();
  for (const ms::array_info& a : file.arrays())
    rows.push_back({a.name, a.dtype, ms::shape_text(a.shape), ms::grouped(ms::index_t(a.bytes))});
  print(table(rows));
}

nlohmann::json to_json(const ms::safetensors_file& file, bool tensors) {
  nlohmann::json out;
  for (const auto& [key, value] : file.metadata()) out["metadata"][key] = value;
  if (tensors)
    for (const ms::array_info& a : file.arrays())
      out["tensors"].push_back({{"name", a.name}, {"type", a.dtype}, {"shape", a.shape}, {"bytes", a.bytes}});
  return out;
}

void run(const options& o) {
  blaming("--model", [&] {
    const ms::safetensors_file file(o.model.path);
    const ms::string_map metadata = file.metadata();
    nlohmann::json out = to_json(file, o.tensors);
    const std::string wrong = complaint(o.model.path, metadata);
    if (!wrong.empty()) {
      out["runs"] = false, out["problem"] = wrong;
      if (o.json.write(out)) return;
      print_file(file, o.tensors);
      print(ms::text("\nThis program cannot run it: ", wrong, "\n"));
      return;
    }
    const auto m = tool::open(o.model.path, storage::as_stored);
    const model_facts& f = m->facts();
    out["runs"] = true, out["variant"] = f.variant, out["exits"] = f.exits;
    out["parameters"] = f.footprint.parameters, out["active_parameters"] = f.footprint.active_parameters;
    out["bytes_per_token"] = f.footprint.bytes_per_token, out["weights"] = f.weights;
    if (o.json.write(out)) return;
    print(ms::text("name       ", f.variant, "\n", f.description));
    if (metadata.contains("exit_calibration.rule")) {
      const ms::calibration c = ms::calibration_from(metadata, o.model.path);
      print(ms::text("exits at   ", c.rule, " ", c.threshold, ": ", c.loss, " at most ", c.tolerance,
                     " with confidence ", c.confidence, ", from ", c.texts, " texts, ", fixed(c.layers_per_token, 2),
                     " layers per token\n"));
    }
    if (o.tensors) print("\n"), print_file(file, true);
  });
}

}  // namespace

action declare_inspect(CLI::App& app) {
  const auto o = std::make_shared<options>();
  app.add_option("--model", o->model.path, "A checkpoint (.safetensors) of any variant")->required()->type_name("FILE");
  app.add_flag("--tensors", o->tensors, "List metadata and tensors, too");
  o->json.declare(app);
  app.footer(wrapped(
      "Active weights are those multiplied for one token at full depth; their bytes are what decoding a token reads."));
  return [o] { run(*o); };
}

}  // namespace tool
