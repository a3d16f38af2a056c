// What depth buys: readings made by hand, and a model's against the definition.
#include <doctest/doctest.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "moeskip/eval/choice_file.hpp"
#include "moeskip/eval/depth.hpp"
#include "moeskip/eval/perplexity.hpp"
#include "moeskip/eval/reliability.hpp"
#include "tiny.hpp"

using namespace tests;
using doctest::Approx;

namespace {

/// Four tokens, exits after 2, 4 and 8 layers.
ms::depth_readings by_hand() {
  ms::depth_readings r;
  r.exits = {2, 4, 8};
  r.targets = {5, 5, 6, 7};
  r.confidence = {0.95, 0.99, 1, 0.25, 0.75, 1, 0.25, 0.35, 1, 0.85, 0.95, 1};
  r.predicted = {5, 5, 5, 1, 5, 5, 1, 2, 6, 7, 3, 3};
  r.bits = {0.5, 0.25, 0.25, 4, 1, 0.5, 8, 6, 2, 0.5, 3, 4};
  return r;
}

}  // namespace

TEST_CASE("exits judged where all tokens leave at the same one") {
  const auto judged = ms::judge_exits(by_hand());
  REQUIRE(judged.size() == 3);
  CHECK(judged[0].exit_layer == 2);
  CHECK(judged[0].bits == Approx(13.0 / 4));
  CHECK(judged[0].correct == 0.5);     // tokens 0 and 3
  CHECK(judged[0].agreement == 0.25);  // token 0: the full depth is wrong about token 3
  CHECK(judged[1].agreement == 0.75);
  CHECK(judged[2].agreement == 1);
  CHECK(judged[2].correct == 0.75);
  CHECK(judged[2].bits == Approx(6.75 / 4));
}

TEST_CASE("tokens leave where confidence reaches the threshold") {
  const ms::depth_readings r = by_hand();
  CHECK(ms::exit_histogram(r, 0.7f) == std::vector<long long>{2, 1, 1});
  CHECK(ms::exit_histogram(r, 2) == std::vector<long long>{0, 0, 4});
  const ms::threshold_judged j = ms::judge_threshold(r, 0.7f);
  CHECK(j.mean_exit == Approx((2 + 4 + 8 + 2) / 4.0));
  CHECK(j.saved(8) == Approx(0.5));
  CHECK(j.bits == Approx((0.5 + 1 + 2 + 0.5) / 4));
  CHECK(j.agreement == 0.75);
}

TEST_CASE("depth by surprise") {
  const auto groups = ms::depth_by_surprise(by_hand(), 0.7f, 2);
  REQUIRE(groups.size() == 2);
  CHECK(groups[0].tokens == 2);
  CHECK(groups[0].bits == Approx(0.375));
  CHECK(groups[0].mean_exit == 3);  // tokens 0 and 1 leave after 2 and 4
  CHECK(groups[1].mean_exit == 5);
  CHECK_THROWS_AS(ms::depth_by_surprise(by_hand(), 0.7f, 5), ms::config_error);
}

TEST_CASE("reliability of confidence") {
  const auto bins = ms::reliability(by_hand(), 0, 2);
  REQUIRE(bins.size() == 2);
  CHECK(bins[0].tokens == 2);
  CHECK(bins[0].confidence == Approx(0.25));
  CHECK(bins[0].correct == 0);
  CHECK(bins[1].confidence == Approx(0.9));
  CHECK(bins[1].correct == 1);
  CHECK(bins[1].agreement == 0.5);
  CHECK(ms::calibration_error(bins) == Approx((0.25 + 0.1) / 2));
  CHECK(ms::calibration_error(bins, &ms::confidence_bin::agreement) == Approx((0.25 + 0.4) / 2));
  CHECK(ms::reliability(by_hand(), 2, 4)[3].tokens == 4);  // confidence 1 is in the last bin
}

TEST_CASE("readings of a model are those of evaluate(), exit by exit") {
  struct V : ms::variant {};
  using B = ms::reference<double>;
  ms::model<V, B> m({.sizes = tiny_sizes, .exits = ms::exits_after(1, 3)}, ms::seed{3});
  const std::vector<int> text = random_tokens(17, tiny_sizes.vocab, 9);
  const std::vector<std::vector<int>> texts{text};
  const ms::depth_readings r = ms::read_depth(m, std::span<const std::vector<int>>(texts));
  CHECK(r.tokens() == 16);
  const auto judged = ms::judge_exits(r);
  const auto expected = ms::evaluate(m, std::span<const int>(text), 16);
  REQUIRE(judged.size() == expected.size());
  for (std::size_t e = 0; e < judged.size(); ++e) {
    CHECK(judged[e].exit_layer == expected[e].exit_layer);
    CHECK(judged[e].bits == Approx(expected[e].bits_per_token));
  }
}

TEST_CASE("perplexity: who knows nothing hesitates between all tokens") {
  CHECK(ms::perplexity(0) == 1);
  CHECK(ms::perplexity(3) == 8);
  struct V : ms::variant {};
  using M = ms::model<V, ms::reference<double>>;
  M zeros({.sizes = tiny_sizes, .exits = ms::exits_after(2)}, M::uninitialised{});
  for (const ms::exit_quality& q : ms::evaluate(zeros, random_tokens(17, tiny_sizes.vocab, 9), 16)) {
    CHECK(q.bits_per_token == Approx(std::log2(tiny_sizes.vocab)));
    CHECK(ms::perplexity(q.bits_per_token) == Approx(tiny_sizes.vocab));
  }
}

TEST_CASE("acceptance, in all and by place in the draft") {
  ms::decode_stats s;
  s.count(ms::speculation_round{.verified = 3, .accepted = 2});  // d d n
  s.count(ms::speculation_round{.verified = 0});                 // n
  s.count(ms::speculation_round{.verified = 2, .accepted = 2});  // d d n
  s.count(ms::speculation_round{.verified = 1, .accepted = 0});  // n
  CHECK(s.rounds == 4);
  CHECK(s.drafted == 6);
  const ms::emitted d{1, 2, true}, n{1, 4, false};
  s.count(std::vector<ms::emitted>{d, d, n, n, d, d, n, n});
  CHECK(s.tokens == 8);
  CHECK(s.acceptance_rate() == Approx(4.0 / 6));
  CHECK(s.drafted_at[0] == 3);
  CHECK(s.drafted_at[1] == 2);
  CHECK(s.drafted_at[2] == 1);
  CHECK(s.accepted_at[0] == 2);
  CHECK(s.accepted_at[1] == 2);
  CHECK(s.accepted_at[2] == 0);
}

TEST_CASE("questions answered by what is likeliest behind them, at every exit") {
  const std::vector<ms::choice_question> questions{{{1, 2}, {{3}, {4, 5}}, 1}, {{6}, {{7, 8}, {9}}, 0}};
  const auto texts = ms::choice_texts(questions);
  CHECK(texts == std::vector<std::vector<int>>{{1, 2, 3}, {1, 2, 4, 5}, {6, 7, 8}, {6, 9}});
  ms::depth_readings r;
  r.exits = {2, 4};
  // Rows: 2→3 is the first choice; 2→4 and 4→5 the second; then 6→7, 7→8; then 6→9.
  r.bits = {9, 9, 3, 3, 9, 9, 2, 1, 2, 1, 1, 2, 2, 2, 2.5, 3};
  const auto judged = ms::judge_choices(r, questions);
  REQUIRE(judged.size() == 2);
  CHECK(judged[0].exit_layer == 2);
  CHECK(judged[0].correct == 0);            // 3 < 2 + 2, and 2.5 < 1 + 2
  CHECK(judged[0].correct_by_length == 1);  // but 3 > 2, and 2.5 > 1.5
  CHECK(judged[0].agreement == 0.5);
  CHECK(judged[1].correct == 0.5);
  CHECK(judged[1].correct_by_length == 1);
  CHECK(judged[1].agreement == 1);
  CHECK(ms::chance(questions) == 0.5);
  CHECK_THROWS_AS(ms::choice_texts(std::vector<ms::choice_question>{{{1}, {{2}, {3}}, 2}}), ms::config_error);
  CHECK_THROWS_AS(ms::choice_texts(std::vector<ms::choice_question>{{{1}, {{2}}, 0}}), ms::config_error);

  struct V : ms::variant {};
  ms::model<V, ms::reference<double>> m({.sizes = tiny_sizes}, ms::seed{5});  // no exits but the full depth
  const auto full = ms::read_depth_at(m, {4}, std::span<const std::vector<int>>(texts));
  CHECK(full.tokens() == 2 + 3 + 2 + 1);
  CHECK(ms::judge_choices(full, questions)[0].agreement == 1);
}

TEST_CASE("questions from a file, and what is wrong with them by line and field") {
  const auto path = std::filesystem::temp_directory_path() / "moeskip_test_choices.jsonl";
  const auto read = [&](const std::string& content) {
    std::ofstream(path, std::ios::binary) << content;
    return ms::read_choices(path, 9, [](const std::string& t) { return std::vector<int>(t.begin(), t.end()); });
  };
  const auto wrong = [&](const std::string& content) {
    try {
      read(content);
    } catch (const ms::file_error& e) {
      return std::string(e.what()).substr(path.string().size());
    }
    return std::string("nothing");
  };
  const auto good = read(
      "{\"context\":\"ab\",\"choices\":[\"c\",\"de\"],\"answer\":1}\n\n"
      "{\"context\":\"x\",\"choices\":[\"y\",\"z\"],\"answer\":0,\"more\":true}");
  REQUIRE(good.size() == 2);
  CHECK(good[0].context == std::vector<int>{'a', 'b'});
  CHECK(good[0].choices[1] == std::vector<int>{'d', 'e'});
  CHECK(good[0].answer == 1);
  CHECK(wrong("no\n") == ":1: expected a question (a JSON object), got no JSON");
  CHECK(wrong("\n{}\n") == ":2: context: expected a text that is not empty, got nothing");
  CHECK(wrong("{\"context\":\"\"}") == ":1: context: expected a text that is not empty, got none");
  CHECK(wrong("{\"context\":\"a\"}") == ":1: choices: expected a list of at least two texts, got nothing");
  CHECK(wrong("{\"context\":\"a\",\"choices\":[\"b\"]}") ==
        ":1: choices: expected a list of at least two texts, got 1");
  CHECK(wrong("{\"context\":\"a\",\"choices\":[\"b\",3]}") ==
        ":1: choices[1]: expected a text that is not empty, got number");
  CHECK(wrong("{\"context\":\"a\",\"choices\":[\"b\",\"c\"]}") ==
        ":1: answer: expected the number of the right choice, got nothing");
  CHECK(wrong("{\"context\":\"a\",\"choices\":[\"b\",\"c\"],\"answer\":2}") ==
        ":1: answer: expected from 0 to 1, got 2");
  CHECK(wrong("{\"context\":\"123456789\",\"choices\":[\"b\",\"c\"],\"answer\":0}") ==
        ":1: choices[0]: expected at most 9 tokens with its context, got 10");
  CHECK(wrong("\n") == ": expected questions, one a line, got none");
  std::filesystem::remove(path);
}
