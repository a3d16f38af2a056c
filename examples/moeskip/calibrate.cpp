// moeskip calibrate: the threshold of early exit, chosen so that exits differ from the full depth, or err more than it,
// no more often than is tolerated.
#include "command.hpp"
#include "moeskip/formats/text.hpp"
#include "moeskip/formats/tokenizer/byte.hpp"

namespace tool {

namespace {

struct options {
  model_options model;
  json_options json;
  std::vector<std::string> files;
  std::string separator, loss = "consistency", save;
  int windows = 0;
  ms::calibration_options calibration;
};

/// Of every document the beginning, as much as the model reads in one pass.
texts read_texts(const options& o, int context) {
  texts out;
  const auto add = [&](std::string_view document) {
    const auto ids = ms::tokenizer::byte::encode(document.substr(0, std::size_t(context) + 1));
    if (ids.size() >= 2) out.push_back(ids);
  };
  for (const std::string& path : o.files) {
    const std::string all = blaming("--text", [&] { return ms::read_text(path); });
    if (o.windows > 0) {
      for (auto& one : windows_of(ms::tokenizer::byte::encode(all), context, o.windows)) out.push_back(std::move(one));
    } else if (o.separator.empty()) {
      add(all);
    } else {
      std::string_view rest = all;
      for (std::size_t end; (end = rest.find(o.separator)) != rest.npos; rest.remove_prefix(end + o.separator.size()))
        add(rest.substr(0, end));
      add(rest);
    }
  }
  return out;
}

void run(const options& o) {
  MOESKIP_CHECK(ms::config_error, o.windows == 0 || o.separator.empty(), "expected --separator or --windows, got both");
  o.json.expect_writable();
  if (!o.save.empty()) blaming("--save", [&] { ms::atomic_file attempt(o.save); });
  const auto m = o.model.open();
  const model_facts& f = m->facts();
  ms::calibration_options wanted = o.calibration;
  wanted.loss = o.loss == "risk" ? ms::calibration_loss::risk : ms::calibration_loss::consistency;
  const texts all = read_texts(o, f.sizes.context);
  const ms::calibration c = blaming("--text", [&] { return m->calibrate(all, wanted); });
  if (!o.save.empty()) {
    ms::string_map about;
    for (const auto& [key, value] : ms::to_metadata(c)) about[key] = value;
    blaming("--save", [&] { m->save(o.save, about); });
  }
  nlohmann::json out;
  c.fields(c, [&](std::string_view field, const auto& value) { out[std::string(field)] = value; });
  out["passed"] = c.threshold <= 1;
  if (o.json.write(out)) return;
  if (c.threshold > 1) {
    print(ms::text("No threshold passed: with ", c.texts, " texts nothing can be promised at tolerance ", c.tolerance,
                   ". More texts, or a larger tolerance, may help.\n"));
  } else {
    print(ms::text("threshold  ", c.threshold, " of ", c.rule, "\npromise    with confidence ", c.confidence, ", ",
                   c.loss == "risk" ? "exits err more often than the full depth by at most "
                                    : "exits differ from the full depth on at most ",
                   c.tolerance, " of tokens\nmeasured   ", fixed(c.mean_loss, 4), " on ", c.texts,
                   " texts\ndepth      ", fixed(c.layers_per_token, 2), " of ", f.sizes.layers, " layers per token\n"));
  }
  if (!o.save.empty()) print(ms::text("saved      ", o.save, "\n"));
}

}  // namespace

action declare_calibrate(CLI::App& app) {
  const auto o = std::make_shared<options>();
  o->model.declare(app);
  app.add_option("--text", o->files, "Documents, each a file; or files with many, see --separator")
      ->required()
      ->type_name("FILE");
  app.add_option("--separator", o->separator, "What stands between the documents of a file")->type_name("TEXT");
  app.add_option(
         "--windows", o->windows,
         "Take so many windows, evenly spread, instead of documents: the promise holds only where each is of another "
         "document")
      ->check(within(1, 1 << 24))
      ->type_name("N");
  app.add_option("--tolerance", o->calibration.tolerance, "Share of tokens that may go wrong (0.1)")
      ->check(within(1e-6, 0.999999))
      ->type_name("SHARE");
  app.add_option("--confidence", o->calibration.confidence, "How sure the promise is (0.95)")
      ->check(within(1e-6, 0.999999))
      ->type_name("SHARE");
  app.add_option("--loss", o->loss,
                 "consistency: tokens where an exit differs from the full depth. risk: tokens that it gets wrong "
                 "beyond those of "
                 "the full depth (consistency)")
      ->check(CLI::IsMember({"consistency", "risk"}).description(""))
      ->type_name("NAME");
  app.add_option("--save", o->save, "Write the checkpoint with its calibration into this file")->type_name("FILE");
  o->json.declare(app);
  app.footer(wrapped(
      "The promise: whatever texts are drawn like these, the expected share of wrong tokens is within the tolerance, "
      "with "
      "the given confidence over the draw of the calibration texts (Learn then Test, arXiv:2110.01052). It needs texts "
      "that are independent of each other and were not trained on, at least 29 for the default numbers."));
  return [o] { run(*o); };
}

}  // namespace tool
