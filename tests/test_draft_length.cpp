// Policies of draft length in a simulated world, where costs and chances of acceptance are known: no clock is read.
#include <doctest/doctest.h>

#include <cmath>
#include <functional>

#include "tiny.hpp"

using namespace tests;

namespace {

struct small : ms::variant {};
struct in_segments : ms::variant {
  using router = ms::router::segment<ms::router::top_k<2>, 4>;
};
using B = ms::cpu<float>;

/// 12 layers; memory-bound, if nothing else is said: a weight takes a nanosecond.
template <class V> constexpr ms::config<V> shape_of{
    .sizes = {.layers = 12, .dim = 16, .heads = 2, .ffn = 16, .experts = 16, .vocab = 8, .context = 8192},
    .exits = ms::exits_every(2, 12)};
constexpr const auto& shape = shape_of<small>;

/// Stands for draft::self: exits without a model behind them.
struct exits_only {
  std::vector<int> all{2, 4, 6, 8, 10};
  int exit = 6, watch_next = 0;
  int exit_layer() const { return exit; }
  std::span<const int> exits() const { return all; }
  void leave_at(int e) { exit = e; }
  void watch(int e) { watch_next = e; }
  std::span<const float> watched() const { return {}; }
};
static_assert(ms::ChoosesExit<exits_only>);

struct world {
  std::function<double(int)> chance;                            // of acceptance, by exit layer
  std::function<double(int)> growth = [](int) { return 1.0; };  // of a verify's time beyond its bytes, by rows
  std::uint64_t slow_round = ~0ull;
  std::function<double(double)> believed = [](double p) { return p; };  // the draft's confidence, by chance
  int segment = 1;                                                      // tokens that share their experts
  /// phase: of the first row in its segment.
  double read(int first, int last, int rows, int phase = 0) const {
    const double choices = (phase + rows - 1) / segment + 1;
    double sum = 0;
    for (int l = first; l < last; ++l) sum += ms::layer_weights_read(shape, l, ms::independent_union(16, 2, choices));
    return sum * 1e-9;
  }
  double head() const { return ms::head_weights_read(shape.sizes) * 1e-9; }
  double plain() const { return read(0, 12, 1) + head(); }
  /// Tokens a second of drafting d tokens at exit e, over those of plain decoding.
  double speedup(int e, int d) const {
    const double a = chance(e), shallow = read(0, e, 1);
    double deep = 0;
    for (int phase = 0; phase < segment; ++phase) deep += read(e, 12, d + 1, phase) / segment;
    const double cost = d * (shallow + head()) + shallow + (deep + head()) * growth(d + 1);
    return (1 - std::pow(a, d + 1)) / (1 - a) * plain() / cost;
  }
  double best_speedup() const {
    double best = 1;
    for (const int e : {2, 4, 6, 8, 10})
      for (int d = 1; d <= 12; ++d) best = std::max(best, speedup(e, d));
    return best;
  }
};

/// Tells the session's meter of tokens up to position `end` whose segments choose experts as they like.
template <class Session> void route(Session& s, const world& w, int& known, int end, const ms::draws& draw) {
  for (; known < end; ++known)
    for (int l = 0; l < 12; ++l) {
      int chosen[2], slot = 0;
      chosen[0] = int(draw.below(16, std::uint64_t(known / w.segment), std::uint64_t(l), 7));
      chosen[1] = (chosen[0] + 1 + int(draw.below(15, std::uint64_t(known / w.segment), std::uint64_t(l), 8))) % 16;
      const ms::routing<float> r{{}, {chosen, 1, 2}, {}, {}};
      s.meter().routed(l, r, {{&slot, 1}, {&known, 1}});
    }
}

/// Decodes `tokens` tokens in that world; returns plain decoding's time over the policy's.
template <class V = small> double live(const world& w, int tokens, std::uint64_t from) {
  using draft_length = ms::draft_length::utility;
  using session = ms::session<V, B>;
  static ms::model<V, B> m(shape_of<V>, ms::seed{1});
  session s(m);
  s.prefill(std::vector<int>{0});
  exits_only draft;
  typename draft_length::on<session, exits_only> length(draft_length{}, s, draft);
  int known = 0;
  const ms::draws draw{{from}, ms::stream::user};
  double time = 0;
  int made = 0;
  for (std::uint64_t round = 0; made < tokens; ++round) {
    draft.watch_next = 0;
    route(s, w, known, s.position() + 1, draw);
    const int phase = s.position() % w.segment;
    const int room = length.plan(s, draft, 12), e = draft.exit_layer();
    std::vector<ms::proposal> all;
    ms::speculation_round r{.exit_layer = e};
    // Confidence scatters around what is believed, and acceptance follows the chance that the scatter leaves.
    const auto propose = [&](int exit, std::uint64_t i) {
      const double mean = w.chance(exit), scatter = std::min({0.1, mean, 1 - mean});
      const double p = mean + scatter * (2 * draw.uniform_double(round, i, 1) - 1);
      return ms::proposal{w.believed(p), draw.uniform_double(round, i, 2) < p};
    };
    for (ms::verdict go = ms::verdict::more; go == ms::verdict::more && r.verified < room;) {
      all.push_back(propose(e, all.size()));
      go = length.judge(r.verified, all.back().confidence);
      if (go != ms::verdict::drop) ++r.verified;
    }
    r.proposed = int(all.size());
    while (r.accepted < r.verified && all[std::size_t(r.accepted)].accepted) ++r.accepted;
    r.judged = std::span<const ms::proposal>(all).first(std::min(all.size(), std::size_t(r.accepted) + 1));
    r.draft_seconds = r.proposed * (w.read(0, e, 1) + w.head());
    r.verify_seconds = (r.verified + 1 - r.proposed) * w.read(0, e, 1) +
                       (w.read(e, 12, r.verified + 1, phase) + w.head()) * w.growth(r.verified + 1);
    if (draft.watch_next) r.watched = propose(draft.watch_next, 99), r.verify_seconds += w.head();
    if (round == w.slow_round) r.verify_seconds += 60 * w.plain();  // the machine was elsewhere
    length.observe(r);
    time += r.draft_seconds + r.verify_seconds, made += r.accepted + 1;
    for (int i = 0; i <= r.accepted; ++i) s.push(0);
  }
  return made * w.plain() / time;
}

}  // namespace

TEST_CASE("utility reaches most of what the best fixed exit and length would gain") {
  const std::function<double(int)> chances[] = {
      [](int e) { return 0.8 + 0.19 * e / 12; },  // good from the start: leave early
      [](int e) { return 0.3 + 0.65 * e / 12; },
      [](int e) { return e < 6 ? 0.05 : 0.97; },  // only the upper exits are any good
      [](int e) { return e == 2 ? 0.95 : 0.96; },
  };
  for (std::size_t i = 0; i < std::size(chances); ++i) {
    const world w{.chance = chances[i]};
    CAPTURE(i);
    const double best = w.best_speedup(), reached = live(w, 3000, i);
    CAPTURE(best);
    CHECK(reached > 0.98 + 0.75 * (best - 1));
  }
}

TEST_CASE(
    "utility learns where segments end, and there is about as good as the best fixed exit and length, learning "
    "included") {
  for (const double chance : {0.7, 0.85, 0.95}) {
    CAPTURE(chance);
    const world w{.chance = [=](int e) { return chance + (0.99 - chance) * e / 12; }, .segment = 4};
    const double best = w.best_speedup(), reached = live<in_segments>(w, 3000, 5);
    CAPTURE(best);
    CHECK(reached > 1 + 0.9 * (best - 1));
    // A router that does not say that it has segments: what is learned is a mean over their places.
    CHECK(reached > live(w, 3000, 5));
  }
}

TEST_CASE("utility loses at most three hundredths where speculation cannot win, long texts and short") {
  const world worlds[] = {
      {.chance = [](int) { return 0.0; }},
      {.chance = [](int) { return 0.02; }, .believed = [](double) { return 0.99; }},  // sure of itself, and wrong
      {.chance = [](int e) { return 0.5 + 0.3 * e / 12; },
       .growth = [](int rows) { return rows == 1 ? 1.0 : 3.0 * rows; }},  // verifying costs more than it looks
      {.chance = [](int e) { return 0.3 * e / 12; }, .growth = [](int rows) { return std::sqrt(rows); }},
  };
  for (std::size_t i = 0; i < std::size(worlds); ++i)
    for (const int tokens : {200, 3000}) {
      CAPTURE(i);
      CAPTURE(tokens);
      CHECK(live(worlds[i], tokens, i) >= 0.97);
    }
}

TEST_CASE("utility forgives a moment in which the machine was elsewhere") {
  const auto good = [](int e) { return 0.9 + 0.09 * e / 12; };
  for (const std::uint64_t slow : {3u, 10u, 200u}) {
    CAPTURE(slow);
    CHECK(live({.chance = good, .slow_round = slow}, 3000, 7) > 0.75 * live({.chance = good}, 3000, 7));
  }
}

TEST_CASE("utility follows a world that changes") {
  int asked = 0;
  const world w{.chance = [&](int e) { return ++asked < 4000 ? 0.0 : 0.9 + 0.05 * e / 12; }};
  CHECK(live(w, 6000, 1) > 1.05);
}

TEST_CASE("the acceptance table believes a draft at first, and what happened later") {
  ms::draft_length::acceptance_table t;
  CHECK(t.expected(0.9) == doctest::Approx(0.9));
  for (int i = 0; i < 100; ++i) t.record(0.95, false), t.record(0.3, true);
  CHECK(t.expected(0.95) < 0.05);
  CHECK(t.expected(0.3) > 0.95);
  double shares = 0;
  t.each([&](double share, double) { shares += share; });
  CHECK(shares == doctest::Approx(1));
}

TEST_CASE("one measurement cannot throw off a steady average") {
  ms::draft_length::steady_average a;
  for (int i = 0; i < 5; ++i) a.record(1);
  a.record(1000);
  CHECK(a.value() <= doctest::Approx(1.1));
  for (int i = 0; i < 60; ++i) a.record(3);
  CHECK(a.value() == doctest::Approx(3).epsilon(0.01));
}

TEST_CASE("the meter counts what consecutive tokens visit together, apart for each phase") {
  ms::arena memory;
  ms::routing_meter meter(memory, {.layers = 1, .dim = 8, .heads = 1, .ffn = 8, .experts = 8, .vocab = 8}, 2, 2);
  CHECK(meter.distinct(0, 0, 3) == doctest::Approx(8 * (1 - std::pow(0.75, 3))));  // nothing is known
  meter.learn();
  // Segments of two share their experts {0, 1}, {2, 3}, {0, 1} …: two tokens visit 2 from an even position, 4 from an
  // odd one.
  constexpr int tokens = 1200;
  std::vector<int> chosen(2 * tokens), position(tokens), slot(tokens);
  for (int n = 0; n < tokens; ++n)
    position[n] = n, chosen[2 * n] = n / 2 % 2 * 2, chosen[2 * n + 1] = n / 2 % 2 * 2 + 1;
  for (int n = 0; n < tokens; n += 3) {
    const ms::routing<float> r{{}, {chosen.data() + 2 * n, 3, 2}, {}, {}};
    meter.routed(0, r, {{slot.data() + n, 3}, {position.data() + n, 3}});
  }
  const auto near = [](double x) { return doctest::Approx(x).epsilon(0.01); };
  CHECK(meter.distinct(0, 0, 1) == near(2));
  CHECK(meter.distinct(0, 0, 2) == near(2));
  CHECK(meter.distinct(0, 1, 2) == near(4));
  CHECK(meter.distinct(0, 0, 16) == near(4));
  CHECK(meter.experts_read() == tokens / 3 * 4);
  meter.reset_experts_read();
  CHECK(meter.experts_read() == 0);
}

TEST_CASE("worth of drafting: zero chances are worth nothing, and the sum over bins else") {
  using ms::draft_length::acceptance_table, ms::draft_length::utility;
  acceptance_table seen;
  for (int i = 0; i < 300; ++i) seen.record(0.3, false), seen.record(0.95, i % 10 != 0);
  constexpr int longest = 5;
  constexpr double proposing = 0.05;
  const auto value_of = [&](double row) {
    utility::worth w;
    w.compute(seen, longest, proposing, [&](int) { return row; });
    return w;
  };
  // U(i, s) as it is defined, on numbers that need no grid: with rows this dear only the next token can pay.
  const auto one_step = [&](double row) {
    double sum = -proposing;
    seen.each([&](double share, double chance) { sum += share * std::max(0.0, chance - row); });
    return sum;
  };
  CHECK(value_of(0.88)(0, 1) == doctest::Approx(one_step(0.88)).epsilon(1e-9));
  double surest = 0;
  seen.each([&](double, double chance) { surest = std::max(surest, chance); });
  for (int i = 0; i < longest; ++i) {  // a row costs what the surest token brings: from here on nothing pays
    CHECK(value_of(surest)(i, 1) == -proposing);
    CHECK(value_of(surest - 1e-9)(i, 1) == doctest::Approx(-proposing).epsilon(1e-6));
  }
  CHECK(value_of(0.3)(0, 1) > one_step(0.3));  // behind the first token there is more to win
}
