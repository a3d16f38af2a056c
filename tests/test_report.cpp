// The pieces of a report: text that cannot leave its place, round numbers, curves, and logs that are not what they
// should be.
#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>

#include "moeskip/eval/report/fill.hpp"
#include "moeskip/eval/report/html.hpp"
#include "moeskip/eval/report/training_log.hpp"

namespace ms = moeskip;
namespace report = moeskip::report;
using doctest::Approx;

namespace {

struct scratch_file {
  std::filesystem::path path = std::filesystem::temp_directory_path() / "moeskip_test_report.jsonl";
  explicit scratch_file(const std::string& content) { std::ofstream(path, std::ios::binary) << content; }
  ~scratch_file() { std::filesystem::remove(path); }
};

std::string failure_of(const std::string& log) {
  const scratch_file file(log);
  try {
    report::read_training_log(file.path);
  } catch (const ms::file_error& e) {
    return std::string(e.what()).substr(file.path.string().size());
  }
  return "none";
}

int count(const std::string& all, const std::string& one) {
  int n = 0;
  for (std::size_t at = 0; (at = all.find(one, at)) != std::string::npos; ++at) ++n;
  return n;
}

}  // namespace

TEST_CASE("text is escaped, whatever it is") {
  CHECK(report::escape("a <b> & \"c\"\n") == "a &lt;b&gt; &amp; &quot;c&quot;\n");
  CHECK(report::escape(std::string("\x01\x7F\xFF") + "é") ==
        "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"
        "é");
}

TEST_CASE("numbers as people read them") {
  CHECK(report::fixed(-0.001, 2) == "0.00");
  CHECK(report::fixed(-1.5, 1) == "-1.5");
  CHECK(report::fixed(0.0 / 0.0, 1) == "–");
  CHECK(report::at(12.0) == "12");
  CHECK(report::at(12.34) == "12.3");
  CHECK(report::short_number(10118784) == "10.1 M");
  CHECK(report::short_number(999) == "999");
}

TEST_CASE("round numbers along an axis") {
  CHECK(report::round_numbers({0, 10}, 5) == std::vector<double>{0, 2, 4, 6, 8, 10});
  CHECK(report::round_numbers({3, 3}, 5) == std::vector<double>{3});
  const auto ticks = report::round_numbers({0.9, 2.1}, 4);
  CHECK(ticks.front() == Approx(1));
  CHECK(report::tick_label(1.5, {1, 1.5, 2}) == "1.5");
  CHECK(report::tick_label(4, {2, 4}) == "4");
  report::extent nothing;
  CHECK(nothing.padded().low == 0);
  CHECK(nothing.padded().high == 1);
}

TEST_CASE("depth has a colour from its first to its last layer") {
  CHECK(report::depth_colour(1, 12) == "#dd9414");
  CHECK(report::depth_colour(12, 12) == "#8854ce");
  CHECK(report::depth_colour(1, 1) == "#dd9414");
}

TEST_CASE("tokens of the same kind share a span, and the prompt cannot leave its own") {
  report::decoded_text t{.prompt = "<b>",
                         .pieces = {"a", "&", "c", "d"},
                         .tokens = {{1, 2, true}, {2, 2, true}, {3, 4, false}, {4, 2, false}}};
  const std::string html = report::token_strip(t, 4);
  CHECK(html.find("&lt;b&gt;") != std::string::npos);
  CHECK(html.find(">a&amp;</span>") != std::string::npos);
  CHECK(count(html, "<span") == 4);
  CHECK(count(html, "drafted after layer 2, accepted") == 1);
}

TEST_CASE("a report of nothing is a page, and a hostile name stays a name") {
  report::report_data d;
  d.title = "</title><script>";
  const std::string html = report::html(d);
  CHECK(html.starts_with("<!doctype html>"));
  CHECK(html.find("<script") == std::string::npos);
  CHECK(html.find("<section") == std::string::npos);
}

TEST_CASE("a decoder's work, for a token and by stage, and how it is drawn") {
  ms::stage_work w;
  w[ms::stage::attention] = {.weights = 1000, .past = 500, .products = 3000, .seconds = 4e-4};
  w[ms::stage::head] = {.weights = 2000, .past = 0, .products = 1000, .seconds = 1e-4};
  w.drafted = {.weights = 600, .past = 100, .products = 800, .seconds = 9};
  report::decoder_speed s{.name = "speculation"};
  s.stats.tokens = 10, s.stats.drafted = 4, s.stats.seconds = 1e-3;
  s.stats.draft_seconds = 3e-4, s.stats.verify_seconds = 6e-4;
  report::add_work(s, w, 2, {.read = 1e6, .peak = 1e9});
  CHECK(s.bytes == Approx((3000 * 2 + 500 * 4) / 10.0));
  CHECK(s.flop == Approx(2 * 4000 / 10.0));
  CHECK(s.roof == Approx(1e6 / 800));
  REQUIRE(s.stages.size() == ms::stage_names.size());
  CHECK(s.in("attention").bytes == Approx((1000 * 2 + 500 * 4) / 10.0));
  CHECK(s.in("attention").seconds == Approx(4e-5));
  CHECK(s.in("head").flop == Approx(200));
  CHECK(s.in("router").bytes == 0);
  CHECK(s.drafting.bytes == Approx((600 * 2 + 100 * 4) / 10.0));
  CHECK(s.drafting.seconds == Approx(3e-5));  // of the decoder's own clock: sampling included
  CHECK(s.verifying.bytes == Approx(800 - 160));
  CHECK(report::cost_of_drafts(s) == " Drafting takes 33 % of the time and 20 % of the bytes of rounds.");

  report::report_data d{.speeds = {s}};
  const std::string drawn = report::stage_figure(d);
  CHECK(count(drawn, "<svg") == 2);
  CHECK(count(drawn, "<rect") == 2 + 2 + 1);  // two stages and the rest of the time, two stages of bytes
  CHECK(count(drawn, ">100</text>") == 1);    // 1e-3 s over ten tokens, in µs
  CHECK(count(drawn, "in no stage: 50.0 µs") == 1);
  CHECK(count(drawn, "router") == 0);
  d.speeds.front().stages.clear();
  CHECK(report::stage_figure(d).empty());
}

TEST_CASE("curves are smoothed by a twelfth of their points, evenly on both sides") {
  std::vector<std::pair<double, double>> raw;
  for (int i = 0; i < 48; ++i) raw.push_back({i, i % 2});
  const auto smooth = report::smoothed(raw);
  REQUIRE(smooth.size() == raw.size());
  CHECK(smooth[0].second == 0);
  CHECK(smooth[1].second == Approx(1.0 / 3));  // 0, 1, 0
  CHECK(smooth[24].second == Approx(0.4));     // 0, 1, 0, 1, 0
}

TEST_CASE("a training log: nats become bits, a last line in the making is passed over") {
  const scratch_file file(
      "{\"step\":1,\"tokens\":64,\"exits\":{\"2\":0.6931471805599453,\"4\":null}}\n"
      "{\"step\":2,\"tokens\":128,\"validation\":{\"4\":1.5}}\n{\"tok");
  const report::training_curves c = report::read_training_log(file.path);
  REQUIRE(c.training.size() == 1);
  CHECK(c.training.at(2)[0].first == 64);
  CHECK(c.training.at(2)[0].second == Approx(1));
  CHECK(c.validation.at(4)[0].second == 1.5);
}

TEST_CASE("a file that is no training log is refused with line and field") {
  CHECK(failure_of("hello\n") == ":1: expected a line of metrics (a JSON object), got no JSON");
  CHECK(failure_of("[]\n") == ":1: expected a line of metrics (a JSON object), got array");
  CHECK(failure_of("{\"tokens\":1,\"exits\":{}}\n{}\n") == ":2: tokens: expected a number, got nothing");
  CHECK(failure_of("{\"tokens\":1,\"exits\":[1]}\n") == ":1: exits: expected losses by exit layer, got array");
  CHECK(failure_of("{\"tokens\":1,\"exits\":{\"0\":1}}\n") == ":1: exits: expected exit layers, got '0'");
  CHECK(failure_of("{\"tokens\":1}\n") == ": expected lines of metrics with exits, got none");
}
