// fit(): metrics, validation, checkpoints, Ctrl-C, resuming, and files that cannot be written.
#include <doctest/doctest.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "moeskip/train/fit.hpp"
#include "tiny.hpp"

using namespace tests;
namespace fs = std::filesystem;
using json = nlohmann::json;

namespace {

struct recipe : ms::variant {
  using expert_dropout = ms::expert_dropout::bernoulli;
  using curriculum = ms::curriculum::rotational;
};
constexpr ms::config<recipe> shape{.sizes = tiny_sizes, .exits = ms::exits_after(2, 3)};
using B = ms::cpu<float>;

struct run {
  std::vector<int> text = random_tokens(1500, 17, 3);
  ms::random_windows data{text, 3, 16, ms::seed{2}};
  ms::model<recipe, B> model{shape, ms::seed{1}};
  ms::trainer<recipe, B> trainer;
  explicit run(std::uint64_t steps = 12, double distill = 0)
      : trainer(model, {.steps = steps,
                        .accumulate = 2,
                        .distill = distill,
                        .curriculum = {.every = 2},
                        .schedule = {.warmup = 3},
                        .ema = 0.9}) {}
  std::vector<float> weights() { return {trainer.master().begin(), trainer.master().end()}; }
};

/// A folder of a test's own.
struct folder {
  fs::path path;
  folder() {
    std::string name = (fs::temp_directory_path() / "moeskip-fit-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()));
    path = name;
  }
  ~folder() { fs::remove_all(path); }
};

std::vector<json> lines_of(const fs::path& path) {
  std::vector<json> lines;
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) lines.push_back(json::parse(line));
  return lines;
}
std::vector<std::uint64_t> steps_of(const std::vector<json>& lines, const char* key) {
  std::vector<std::uint64_t> steps;
  for (const json& line : lines)
    if (line.contains(key)) steps.push_back(line.at("step"));
  return steps;
}
using list = std::vector<std::uint64_t>;

int own_handler_calls = 0;

}  // namespace

TEST_CASE("fit trains as steps do, and writes metrics") {
  const folder f;
  run a, b(12, 0.5);
  run plain;
  while (plain.trainer.next_step() < 12) plain.trainer.step(plain.data);
  std::vector<std::uint64_t> seen;
  const ms::fit_result result = ms::fit(a.trainer, a.data,
                                        {.metrics = f.path / "m.jsonl",
                                         .validate_every = 5,
                                         .validate = ms::validation(a.trainer, a.text, 16, 8, 4),
                                         .progress = [&](const ms::fit_progress& p) {
                                           seen.push_back(p.step);
                                           CHECK(p.steps == 12);
                                           CHECK(p.tokens == p.step * 2 * 48);
                                           CHECK(p.validation.size() == (p.step > 5 ? 3 : 0));
                                         }});
  CHECK(a.weights() == plain.weights());
  CHECK_FALSE(result.interrupted);
  CHECK(result.steps == 12);
  CHECK(result.tokens == 12 * 2 * 48);
  CHECK(seen == list{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12});

  const std::vector<json> lines = lines_of(f.path / "m.jsonl");
  CHECK(steps_of(lines, "loss") == seen);
  CHECK(steps_of(lines, "validation") == list{5, 10, 12});
  double seconds = 0;
  for (const json& line : lines) {
    CHECK(line.at("tokens") == line.at("step").get<int>() * 2 * 48);
    CHECK(line.at("seconds").get<double>() >= seconds);
    seconds = line.at("seconds");
    if (line.contains("validation")) {
      CHECK(line.at("validation").size() == 3);
      continue;
    }
    // Exits after 2 and 3 layers take turns.
    const bool even = line.at("step").get<int>() % 2 == 0;
    CHECK(line.at("exits").contains("2") == !even);
    CHECK(line.at("exits").contains("3") == even);
    CHECK(line.at("exits").at("4").get<double>() > 1);
    for (const char* key : {"loss", "balance", "z", "rate", "gradient_norm", "tokens_per_second"})
      CHECK(line.at(key).get<double>() > 0);
    CHECK_FALSE(line.contains("divergence"));
  }
  // The last validation is that of the averaged weights.
  {
    const ms::averaged_weights averaged(a.trainer);
    const auto quality = ms::evaluate(a.model, a.text, 16, 8, 4);
    CHECK(lines.back().at("validation").at("4").get<double>() == quality.back().bits_per_token);
    CHECK(result.validation.back().bits_per_token == quality.back().bits_per_token);
  }

  ms::fit(b.trainer, b.data, {.metrics = f.path / "distilled.jsonl", .log_every = 5});
  const std::vector<json> distilled = lines_of(f.path / "distilled.jsonl");
  CHECK(steps_of(distilled, "divergence") == list{5, 10, 12});
  CHECK(distilled[0].at("divergence").at("2").get<double>() > 0);
  CHECK_FALSE(distilled[0].at("divergence").contains("4"));
}

TEST_CASE("the first SIGINT saves and stops; the run goes on to the same bits, and so do its metrics") {
  const folder f;
  run whole, first, second;
  ms::fit(whole.trainer, whole.data, {.metrics = f.path / "whole.jsonl"});

  const auto before = std::signal(SIGINT, [](int) { ++own_handler_calls; });
  ms::fit_options options{.metrics = f.path / "m.jsonl", .checkpoint = f.path / "run.safetensors"};
  options.progress = [](const ms::fit_progress& p) {
    if (p.step == 5) std::raise(SIGINT);
  };
  const ms::fit_result stopped = ms::fit(first.trainer, first.data, options);
  CHECK(stopped.interrupted);
  CHECK(stopped.steps == 5);
  CHECK(own_handler_calls == 0);
  std::raise(SIGINT);  // the handler of before is back
  CHECK(own_handler_calls == 1);

  options.progress = {};
  const ms::fit_result finished = ms::fit(second.trainer, second.data, options);
  CHECK_FALSE(finished.interrupted);
  CHECK(second.weights() == whole.weights());
  CHECK(finished.tokens == 12 * 2 * 48);
  const std::vector<json> want = lines_of(f.path / "whole.jsonl"), got = lines_of(f.path / "m.jsonl");
  REQUIRE(want.size() == got.size());
  double seconds = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    for (const char* key : {"step", "tokens", "loss", "exits", "rate", "gradient_norm"})
      CHECK(want[i].at(key) == got[i].at(key));
    CHECK(got[i].at("seconds").get<double>() >= seconds);
    seconds = got[i].at("seconds");
  }

  // A second SIGINT is not ours.
  run third;
  third.trainer.step(third.data);
  options = {.progress = [](const ms::fit_progress&) { std::raise(SIGINT), std::raise(SIGINT); }};
  ms::fit(third.trainer, third.data, options);
  CHECK(own_handler_calls == 2);
  // None is, where it should not be.
  options = {.interruptible = false, .progress = [](const ms::fit_progress& p) {
               if (p.step == 4) std::raise(SIGINT);
             }};
  CHECK_FALSE(ms::fit(third.trainer, third.data, options).interrupted);
  CHECK(own_handler_calls == 3);
  std::signal(SIGINT, before);
}

TEST_CASE("after a crash, lines behind the checkpoint are removed, an unfinished one too") {
  const folder f;
  const ms::fit_options options{
      .metrics = f.path / "m.jsonl", .checkpoint = f.path / "run.safetensors", .checkpoint_every = 4};
  run first, second;
  struct crash {};
  ms::fit_options crashing = options;
  crashing.progress = [](const ms::fit_progress& p) {
    if (p.step == 7) throw crash{};
  };
  CHECK_THROWS_AS(ms::fit(first.trainer, first.data, crashing), crash);
  CHECK(steps_of(lines_of(options.metrics), "loss") == list{1, 2, 3, 4, 5, 6, 7});
  std::ofstream(options.metrics, std::ios::app) << "{\"step\":8,\"tok";
  ms::fit(second.trainer, second.data, options);
  CHECK(steps_of(lines_of(options.metrics), "loss") == list{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12});
  // Finished: nothing is left to do, and nothing changes.
  run third;
  CHECK(ms::fit(third.trainer, third.data, options).steps == 12);
  CHECK(third.weights() == second.weights());
  CHECK(lines_of(options.metrics).size() == 12);
}

TEST_CASE("a disk that is full costs no step") {
  if (!fs::exists("/dev/full")) return;
  const folder f;
  run whole, r;
  ms::fit(whole.trainer, whole.data);
  ms::fit_options options{.metrics = "/dev/full", .checkpoint = f.path / "run.safetensors"};
  CHECK_THROWS_WITH_AS(ms::fit(r.trainer, r.data, options), doctest::Contains("/dev/full: cannot write: "),
                       ms::file_error);
  CHECK(r.trainer.next_step() == 1);
  run saved;
  ms::resume(saved.trainer, options.checkpoint, saved.data.about());
  CHECK(saved.weights() == r.weights());
  // The same trainer goes on; a checkpoint that cannot be written loses nothing either.
  options = {.metrics = f.path / "m.jsonl", .checkpoint = f.path / "no" / "run.safetensors", .checkpoint_every = 3};
  CHECK_THROWS_WITH_AS(ms::fit(r.trainer, r.data, options), doctest::Contains("run.safetensors"), ms::file_error);
  CHECK(r.trainer.next_step() == 3);
  options.checkpoint = f.path / "other.safetensors";
  CHECK(ms::fit(r.trainer, r.data, options).tokens == 12 * 2 * 48);
  CHECK(r.weights() == whole.weights());
  CHECK(steps_of(lines_of(options.metrics), "loss") == list{2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12});
}

TEST_CASE("a validation that fails at the end costs no step") {
  const folder f;
  run whole, r;
  ms::fit(whole.trainer, whole.data);
  ms::fit_options options{.checkpoint = f.path / "run.safetensors"};
  options.validate = []() -> std::vector<ms::exit_quality> { throw std::runtime_error("no text"); };
  CHECK_THROWS_WITH_AS(ms::fit(r.trainer, r.data, options), "no text", std::runtime_error);
  run saved;
  ms::resume(saved.trainer, options.checkpoint, saved.data.about());
  CHECK(saved.trainer.next_step() == 12);
  CHECK(saved.weights() == whole.weights());
  // One in the middle of the run, likewise.
  run again;
  options = {.checkpoint = f.path / "other.safetensors", .validate_every = 5, .validate = options.validate};
  CHECK_THROWS_AS(ms::fit(again.trainer, again.data, options), std::runtime_error);
  run resumed;
  ms::resume(resumed.trainer, options.checkpoint, resumed.data.about());
  CHECK(resumed.trainer.next_step() == 5);
}

TEST_CASE("fit: options and files that make no sense are refused by name") {
  const folder f;
  run r;
  const auto refused = [&](const ms::fit_options& options, const char* message) {
    CHECK_THROWS_WITH_AS(ms::fit(r.trainer, r.data, options), doctest::Contains(message), ms::error);
    CHECK(r.trainer.next_step() == 0);
  };
  refused({.log_every = 0}, "fit.log_every");
  refused({.validate_every = 5}, "fit.validate_every");
  refused({.checkpoint_every = 5}, "fit.checkpoint_every");
  refused({.metrics = f.path / "no" / "m.jsonl"}, "m.jsonl: cannot write");
  std::ofstream(f.path / "old.jsonl") << "{\"step\":1}\n";
  refused({.metrics = f.path / "old.jsonl"}, "old.jsonl: holds the metrics of another run");
  CHECK(lines_of(f.path / "old.jsonl").size() == 1);
  std::ofstream(f.path / "other.jsonl") << "{\"step\":1}\nnonsense\n";
  r.trainer.step(r.data);
  CHECK_THROWS_WITH_AS(ms::fit(r.trainer, r.data, {.metrics = f.path / "other.jsonl"}),
                       doctest::Contains("other.jsonl:2: expected a line of metrics"), ms::file_error);
  // Another run's checkpoint.
  run other(13);
  ms::save(other.trainer, f.path / "other.safetensors", other.data.about());
  run fresh;
  CHECK_THROWS_WITH_AS(ms::fit(fresh.trainer, fresh.data, {.checkpoint = f.path / "other.safetensors"}),
                       doctest::Contains("training.steps: expected 12, got 13"), ms::file_error);
}

TEST_CASE("JSON lines hold what JSON can") {
  CHECK(ms::json_line().done() == "{}\n");
  const std::string line = ms::json_line()
                               .number("a", 3)
                               .number("b", std::nan(""))
                               .open("c")
                               .number("1", 0.1f)
                               .number("2", 1e-300)
                               .close()
                               .number("d", -INFINITY)
                               .done();
  CHECK(line == "{\"a\":3,\"b\":null,\"c\":{\"1\":0.1,\"2\":1e-300},\"d\":null}\n");
  CHECK(json::accept(line));
}
