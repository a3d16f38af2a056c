// The backward of every op against the complex-step derivative of its forward (Squire and Trapp 1998), exact to
// rounding:
//   loss(x) = Σ c · outputs(x), c random        d loss / d x_i = Im loss(x + i h e_i) / h
// An op's test is one body that runs twice: on doubles, where its backward fills the gradients of all inputs, and on
// complex numbers once per input element. Shapes are random, small and different on each of a few repeats.
// ctest: arithmetic
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <complex>
#include <limits>

#include "tiny.hpp"

using namespace tests;
using complex = std::complex<double>;

namespace {

constexpr double h = 1e-40;
constexpr ms::index_t nothing = -1;  // no element is stepped

/// An input or output of an op, and its gradient.
template <class View> struct with_gradient { View value, gradient; };

/// One run of an op's body. T is double, or complex with input element `stepped` moved by i h.
template <class T> class evaluation {
  static constexpr bool real = std::is_same_v<T, double>;

 public:
  ms::reference<T> backend;
  ms::arena& memory;

  evaluation(ms::arena& scratch, std::uint64_t seed, ms::index_t stepped)
      : memory(scratch), draw_{{seed}, ms::stream::user}, stepped_(stepped) {}

  /// A whole number in [low, high]: the same one in every run of a repeat.
  int number(int low, int high) { return low + int(draw_.below(std::uint64_t(high - low + 1), ++drawn_, 2)); }
  ms::vec<int> numbers(ms::index_t count, int low, int high) {
    const ms::vec<int> list = memory.take<int>(count);
    for (int& i : list) i = number(low, high);
    return list;
  }

  /// An input whose gradient backward writes (=): it holds NaN before.
  template <class... Extents> auto input(Extents... extents) {
    return make_input(std::numeric_limits<double>::quiet_NaN(), 0, extents...);
  }
  /// An input whose gradient backward adds to (+=): it holds other numbers before.
  template <class... Extents> auto summed_input(Extents... extents) { return make_input(0, 1, extents...); }

  /// An output; its gradient is its random coefficient in the loss.
  template <class... Extents> auto output(Extents... extents) {
    const with_gradient<ms::view<T, sizeof...(Extents)>> pair{memory.take<T>(extents...), memory.take<T>(extents...)};
    for (T& c : pair.gradient) c = coefficient();
    outputs_.push_back({flat(pair.value), flat(pair.gradient)});
    return pair;
  }
  /// Memory for what ops leave to their backward: NaN at first.
  template <class... Extents> auto scratch(Extents... extents) {
    const auto v = memory.take<T>(extents...);
    std::fill(v.begin(), v.end(), T(std::numeric_limits<double>::quiet_NaN()));
    return v;
  }
  /// A term of the loss that the body makes itself.
  void add_to_loss(const T& term) { extra_ += term; }

  /// Runs the backward, on doubles.
  template <class Body> void backward(Body&& body) {
    if constexpr (real) body();
  }

  T loss() const {
    T sum = extra_;
    for (const auto& [value, c] : outputs_)
      for (ms::index_t i = 0; i < value.size(); ++i) sum += c[i] * value[i];
    return sum;
  }
  /// What backward left in the gradient of each input, less what stood there before.
  std::vector<std::vector<double>> gradients() const requires real {
    std::vector<std::vector<double>> all;
    for (const auto& [gradient, before] : inputs_) {
      all.emplace_back();
      for (ms::index_t i = 0; i < gradient.size(); ++i) all.back().push_back(gradient[i] - before * offset(i));
    }
    return all;
  }

 private:
  struct input_gradient {
    ms::vec<T> gradient;
    double before;  // times offset(i): what stood there before backward
  };
  static double offset(ms::index_t i) { return double(i % 7) / 8; }
  template <class View> static ms::vec<T> flat(const View& v) { return {v.data(), v.size()}; }
  double coefficient() { return 2 * draw_.uniform_double(++drawn_, 3) - 1; }

  template <class... Extents> auto make_input(double start, double before, Extents... extents) {
    const with_gradient<ms::view<T, sizeof...(Extents)>> pair{memory.take<T>(extents...), memory.take<T>(extents...)};
    for (T& x : pair.value) {
      x = coefficient();
      if constexpr (!real)
        if (elements_ == stepped_) x += T(0, h);
      ++elements_;
    }
    for (ms::index_t i = 0; i < pair.gradient.size(); ++i) pair.gradient.data()[i] = start + before * offset(i);
    inputs_.push_back({flat(pair.gradient), before});
    return pair;
  }

  ms::draws draw_;
  std::uint64_t drawn_ = 0;
  ms::index_t stepped_, elements_ = 0;  // input elements so far
  std::vector<input_gradient> inputs_;
  std::vector<with_gradient<ms::vec<T>>> outputs_;
  T extra_{};
};

/// For each input: the largest error of its gradient, relative to its largest derivative, is below 1e-9.
template <class Body> void check_gradients(Body&& body) {
  ms::arena memory;
  for (std::uint64_t repeat = 0; repeat < 4; ++repeat) {
    CAPTURE(repeat);
    const auto everything = memory.scope();
    evaluation<double> exact(memory, 100 + repeat, nothing);
    body(exact);
    REQUIRE(std::isfinite(exact.loss()));
    ms::index_t element = 0;
    double steepest = 0;
    const auto gradients = exact.gradients();
    for (std::size_t input = 0; input < gradients.size(); ++input) {
      double largest = 0, error = 0;
      for (const double gradient : gradients[input]) {
        const auto scope = memory.scope();
        evaluation<complex> stepped(memory, 100 + repeat, element++);
        body(stepped);
        const double derivative = stepped.loss().imag() / h;
        largest = std::max(largest, std::abs(derivative));
        error = std::max(error, std::isnan(gradient) ? INFINITY : std::abs(gradient - derivative));
      }
      CAPTURE(input);
      CHECK(error <= 1e-9 * largest + 1e-15);
      steepest = std::max(steepest, largest);
    }
    CHECK(steepest > 1e-3);  // the loss does depend on the inputs
  }
}

template <class View> void copy(const View& to, const View& from) { std::copy(from.begin(), from.end(), to.begin()); }

/// Rows of `slots` sequences, `first` to `last` new ones in each, after as many old ones as positions[slot] says, which
/// they are added to. Room for all of them is up to the caller.
template <class S> ms::token_rows new_rows(S& s, ms::vec<int> positions, int first, int last) {
  const ms::vec<int> counts = s.numbers(positions.size(), first, last);
  ms::index_t rows = 0;
  for (const int count : counts) rows += count;
  const ms::vec<int> slot = s.memory.template take<int>(rows), position = s.memory.template take<int>(rows);
  ms::index_t n = 0;
  for (ms::index_t i = 0; i < positions.size(); ++i)
    for (int j = 0; j < counts[i]; ++j) slot[n] = int(i), position[n++] = positions[i]++;
  return {slot, position};
}

template <class S> ms::attention_shape random_attention(S& s) {
  ms::attention_shape shape{
      .kv_heads = s.number(1, 2), .head_dim = 2 * s.number(1, 2), .rope_theta = 100.f, .scale = 0.8f};
  shape.heads = shape.kv_heads * s.number(1, 3);
  shape.rotary_dim = 2 * s.number(0, shape.head_dim / 2);  // 0: all
  return shape;
}

}  // namespace

TEST_CASE("op gradients: linear") {
  check_gradients([](auto& s) {
    const int N = s.number(1, 5), I = s.number(1, 7), O = s.number(1, 7);
    const auto x = s.input(N, I), residual = s.input(N, O), w = s.summed_input(O, I);
    const auto y = s.output(N, O);
    ms::linear(s.backend, y.value, x.value, w.value, residual.value);
    s.backward([&] {
      ms::linear_backward(s.backend, x.gradient, w.gradient, y.gradient, x.value, w.value);
      copy(residual.gradient, y.gradient);
    });
  });
}

TEST_CASE("op gradients: linear, one gradient at a time, on top of y itself") {
  check_gradients([](auto& s) {
    const int N = s.number(1, 5), I = s.number(1, 7), O = s.number(1, 7);
    const auto x = s.input(N, I), before = s.input(N, O), w = s.summed_input(O, I);
    const auto y = s.output(N, O);
    copy(y.value, before.value);
    ms::linear(s.backend, y.value, x.value, w.value, y.value);
    s.backward([&] {
      ms::linear_backward(s.backend, {}, w.gradient, y.gradient, x.value, w.value);
      ms::linear_backward(s.backend, x.gradient, {}, y.gradient, x.value, w.value);
      copy(before.gradient, y.gradient);
    });
  });
}

TEST_CASE("op gradients: rms_norm") {
  check_gradients([](auto& s) {
    const int N = s.number(1, 5), D = s.number(2, 9);
    const auto x = s.summed_input(N, D);
    const auto gain = s.summed_input(D);
    const auto y = s.output(N, D);
    ms::rms_norm(s.backend, y.value, x.value, gain.value, 0.1f);
    s.backward(
        [&] { ms::rms_norm_backward(s.backend, x.gradient, gain.gradient, y.gradient, x.value, gain.value, 0.1f); });
  });
}

TEST_CASE("op gradients: norm_linear") {
  check_gradients([](auto& s) {
    const int N = s.number(1, 5), I = s.number(2, 7), O = s.number(1, 7);
    const auto x = s.summed_input(N, I), w = s.summed_input(O, I);
    const auto gain = s.summed_input(I);
    const auto y = s.output(N, O);
    const auto normed = s.scratch(N, I);
    ms::norm_linear(s.backend, y.value, normed, x.value, gain.value, w.value, 0.1f);
    s.backward([&] {
      ms::norm_linear_backward(s.backend, x.gradient, s.scratch(N, I), gain.gradient, w.gradient, y.gradient, x.value,
                               normed, gain.value, w.value, 0.1f);
    });
  });
}

TEST_CASE("op gradients: embed") {
  check_gradients([](auto& s) {
    const int N = s.number(4, 9), V = s.number(2, 5), D = s.number(1, 5);  // some tokens come twice, some never
    const auto table = s.summed_input(V, D);
    const ms::vec<int> tokens = s.numbers(N, 0, V - 1);
    const auto x = s.output(N, D);
    ms::embed(s.backend, x.value, tokens, table.value);
    s.backward([&] { ms::embed_backward(s.backend, table.gradient, x.gradient, tokens); });
  });
}

TEST_CASE("op gradients: rope_append") {
  check_gradients([](auto& s) {
    const ms::attention_shape shape = random_attention(s);
    const int S = s.number(1, 3), C = 7;
    const ms::token_rows rows = new_rows(s, s.numbers(S, 0, 4), 1, 3);
    const auto qkv = s.input(rows.size(), shape.q_dim() + 2 * shape.kv_dim());
    const auto q = s.output(rows.size(), shape.q_dim());
    const auto keys = s.output(S, C, shape.kv_dim()), values = s.output(S, C, shape.kv_dim());
    for (auto& x : keys.value) x = 0.5;  // what stands in the cache already
    for (auto& x : values.value) x = 0.25;
    ms::rope_append(s.backend, q.value, {keys.value, values.value}, qkv.value, rows, shape);
    s.backward([&] {
      ms::rope_append_backward(s.backend, qkv.gradient, q.gradient, {keys.gradient, values.gradient}, rows, shape);
    });
  });
}

TEST_CASE("op gradients: attend") {
  check_gradients([](auto& s) {
    const ms::attention_shape shape = random_attention(s);
    const int S = s.number(1, 3), C = 7;
    const ms::token_rows rows = new_rows(s, s.numbers(S, 0, 4), 0, 3);
    const auto q = s.input(rows.size(), shape.q_dim());
    const auto keys = s.summed_input(S, C, shape.kv_dim()), values = s.summed_input(S, C, shape.kv_dim());
    const auto out = s.output(rows.size(), shape.q_dim());
    ms::attend(s.backend, out.value, q.value, {keys.value, values.value}, rows, shape, s.memory);
    s.backward([&] {
      ms::attend_backward(s.backend, q.gradient, {keys.gradient, values.gradient}, out.gradient, q.value,
                          {keys.value, values.value}, rows, shape, s.memory);
    });
  });
}

// The second call looks back at keys and values of the first: their gradients meet in the cache's.
TEST_CASE("op gradients: attention of two calls through rope and cache") {
  check_gradients([](auto& s) {
    const ms::attention_shape shape = random_attention(s);
    const int S = s.number(1, 2), C = 6, q_dim = shape.q_dim(), kv_dim = shape.kv_dim();
    const ms::vec<int> positions = s.numbers(S, 0, 0);
    const ms::token_rows rows1 = new_rows(s, positions, 1, 3), rows2 = new_rows(s, positions, 1, 3);
    const auto qkv1 = s.input(rows1.size(), q_dim + 2 * kv_dim), qkv2 = s.input(rows2.size(), q_dim + 2 * kv_dim);
    const auto out1 = s.output(rows1.size(), q_dim), out2 = s.output(rows2.size(), q_dim);
    const auto q1 = s.scratch(rows1.size(), q_dim), q2 = s.scratch(rows2.size(), q_dim);
    const auto keys = s.scratch(S, C, kv_dim), values = s.scratch(S, C, kv_dim);
    const auto forward = [&](auto& out, auto& q, auto& qkv, const ms::token_rows& rows) {
      ms::rope_append(s.backend, q, {keys, values}, qkv.value, rows, shape);
      ms::attend(s.backend, out.value, q, {keys, values}, rows, shape, s.memory);
    };
    forward(out1, q1, qkv1, rows1);
    forward(out2, q2, qkv2, rows2);
    s.backward([&] {
      const auto dkeys = s.scratch(S, C, kv_dim), dvalues = s.scratch(S, C, kv_dim);
      std::fill(dkeys.begin(), dkeys.end(), 0.0), std::fill(dvalues.begin(), dvalues.end(), 0.0);
      const auto back = [&](auto& out, auto& q, auto& qkv, const ms::token_rows& rows) {
        const auto dq = s.scratch(rows.size(), q_dim);
        ms::attend_backward(s.backend, dq, {dkeys, dvalues}, out.gradient, q, {keys, values}, rows, shape, s.memory);
        ms::rope_append_backward(s.backend, qkv.gradient, dq, {dkeys, dvalues}, rows, shape);
      };
      back(out2, q2, qkv2, rows2);
      back(out1, q1, qkv1, rows1);
    });
  });
}

TEST_CASE("op gradients: swiglu, beside its input and over it") {
  for (const bool in_place : {false, true})
    check_gradients([in_place](auto& s) {
      const int M = s.number(1, 5), F = s.number(1, 7);
      const auto gate_up = s.input(M, 2 * F);
      const auto act = s.output(M, F);
      ms::swiglu(s.backend, act.value, gate_up.value);
      s.backward([&] {
        if (in_place) copy(gate_up.gradient, gate_up.value);
        ms::swiglu_backward(s.backend, gate_up.gradient, act.gradient, in_place ? gate_up.gradient : gate_up.value);
      });
    });
}

namespace {

void check_experts(bool limited, float p) {
  bool dropped = false;
  check_gradients([&](auto& s) {
    const int N = s.number(4, 6), D = s.number(1, 4), F = s.number(1, 3), E = s.number(3, 4), K = s.number(1, 3);
    const auto x = s.input(N, D), residual = s.input(N, D), gate = s.input(N, K);
    const auto gate_up_weights = s.summed_input(E, 2 * F, D), down = s.summed_input(E, D, F);
    const auto y = s.output(N, D);
    const ms::mat<int> chosen(s.memory.template take<int>(N * K).data(), N, K);
    for (int n = 0; n < N; ++n)  // distinct experts; the last one is popular, the first seldom chosen
      for (int k = 0, first = s.number(1, E + 2); k < K; ++k) chosen(n, k) = (std::min(first, E - 1) + k) % E;
    const ms::dispatch d = ms::plan_dispatch(chosen, E, limited ? 2 : 0, s.memory);
    dropped = dropped || d.size() < N * K;
    const auto gate_up = s.scratch(d.size(), 2 * F);
    const ms::vec<int> slot = s.numbers(N, 0, 3), position = s.numbers(N, 0, 99);
    const ms::activation_mask mask{.p = p, .from = {5}, .step = 9, .layer = 1, .rows = {slot, position}};
    ms::experts(s.backend, y.value, gate_up, residual.value, x.value, {{}, chosen, gate.value, {}}, d,
                {gate_up_weights.value, down.value}, s.memory, mask);
    s.backward([&] {
      ms::experts_backward(s.backend, x.gradient, gate.gradient, {gate_up_weights.gradient, down.gradient}, y.gradient,
                           gate_up, x.value, {{}, chosen, gate.value, {}}, d, {gate_up_weights.value, down.value},
                           s.memory, mask);
      copy(residual.gradient, y.gradient);
    });
  });
  CHECK(dropped == limited);
}

}  // namespace

TEST_CASE("op gradients: experts, without and with a capacity, without and with dropout inside them") {
  for (const bool limited : {false, true})
    for (const float p : {0.f, 0.4f}) check_experts(limited, p);
}

namespace {

/// Gates and auxiliary losses of a router, with every expert alive and with a set of living ones for each row.
template <class R> void check_router(const R& router) {
  constexpr int K = R::experts_per_token;
  for (const bool masked : {false, true})
    for (const double z_weight : {0.0, 0.7})
      check_gradients([&](auto& s) {
        using T = ms::scalar_t<std::decay_t<decltype(s.backend)>>;
        const int N = s.number(2, 6), E = 2 * s.number(K + 1 > 3 ? K : 2, K + 2);
        const auto logits = s.input(N, E * ms::logits_per_expert<R>);
        const auto gate = s.output(N, K);
        const ms::vec<ms::expert_set> sets = s.memory.template take<ms::expert_set>(masked ? N : 1);
        for (ms::expert_set& set : sets) {
          set = ms::expert_set::first(E);
          if (masked) set.erase(s.number(0, E - 1)).erase(s.number(0, E - 1));
        }
        const ms::vec<int> slot = s.memory.template take<int>(N), position = s.memory.template take<int>(N);
        for (int n = 0; n < N; ++n) slot[n] = n / 4, position[n] = n % 4;
        const ms::routing_call<T> call{
            .alive = {sets}, .rows = {slot, position, position}, .training = true, .from = ms::seed{8}, .step = 2};
        const ms::mat<int> chosen(s.memory.template take<int>(N * K).data(), N, K);
        const ms::routing<T> r{s.scratch(N, E), chosen, gate.value, s.scratch(E)};
        const ms::auxiliary_weights weights{.balance = 0.3, .z = z_weight, .change = 0.9};
        ms::route(s.backend, r, logits.value, router, call, s.memory);
        const auto losses = losses_of(s.backend, r, logits.value, call, s.memory);
        s.add_to_loss(0.3 * losses.balance + z_weight * losses.z + 0.9 * losses.change);
        s.backward([&] {
          ms::route_backward(s.backend, logits.gradient, gate.gradient, logits.value, r, router, call, weights,
                             s.memory);
        });
      });
}

}  // namespace

TEST_CASE("op gradients: routers, gates and auxiliary losses, with and without masked experts") {
  using namespace ms::router;
  SUBCASE("the best two, renormalised") { check_router(top_k<2>{}); }
  SUBCASE("the best two") { check_router(top_k<2>{.renormalise = false}); }
  SUBCASE("the best two, softmax after selection") { check_router(top_k<2>{.order = softmax_order::after_selection}); }
  SUBCASE("the best four, renormalised") { check_router(top_k<4>{}); }
  SUBCASE("the best one") { check_router(top_k<1>{.renormalise = false}); }
  SUBCASE("switch") { check_router(switch_top1{}); }
  SUBCASE("noisy") { check_router(noisy_top_k<2>{}); }
  SUBCASE("sigmoid") { check_router(sigmoid_top_k<2>{.scale = 2.5f}); }
  SUBCASE("sigmoid, not renormalised, in groups") {
    check_router(sigmoid_top_k<2>{.groups = 2, .best_groups = 1, .renormalise = false});
  }
  SUBCASE("experts choose") { check_router(expert_choice<3>{}); }
  SUBCASE("segments") { check_router(segment<top_k<2>, 2>{}); }
  SUBCASE("segments with a free expert") { check_router(segment<top_k<3>, 3, 1>{}); }
  SUBCASE("segments of groups") { check_router(segment_group<top_k<2>, 2, 3>{}); }
  SUBCASE("sticky") { check_router(sticky<sigmoid_top_k<2>>{.bonus = 0.1f}); }
}

TEST_CASE("op gradients: gate_rows") {
  check_gradients([](auto& s) {
    const int N = s.number(1, 4), F = s.number(1, 6);
    const auto x = s.input(N, F), g = s.input(N, 1);
    const auto y = s.output(N, F);
    ms::gate_rows(s.backend, y.value, x.value, g.value);
    s.backward([&] { ms::gate_rows_backward(s.backend, x.gradient, g.gradient, y.gradient, x.value, g.value); });
  });
}

TEST_CASE("op gradients: gates of layers, and what draws them to their share") {
  check_gradients([](auto& s) {
    constexpr float keep = 0.4f, pull = 0.7f;
    constexpr int gates = 3;
    const int N = s.number(1, 5), D = s.number(1, 6);
    const auto x = s.input(N, D), made = s.input(N, D), logit = s.input(N, 1);
    const auto y = s.output(N, D);
    const auto opened = s.scratch(N), chances = s.scratch(1);
    chances[0] = 1.1;  // of the two other gates
    const ms::vec<int> slot = s.numbers(N, 0, 0), position = s.numbers(N, 0, 9);
    const ms::gate_slope slope{0.25f, 0.5f};
    ms::open_gates(s.backend, opened, chances, logit.value, slope, {ms::seed{8}, 2, 1, {slot, position}});
    ms::pass_gates(s.backend, y.value, x.value, made.value, opened);
    const auto over = chances[0] / double(gates) - double(keep);
    s.add_to_loss(double(pull) * over * over);
    s.backward([&] {
      copy(made.gradient, y.gradient);
      ms::pass_gates_backward(s.backend, made.gradient, x.gradient, logit.gradient, x.value, made.value, opened,
                              logit.value, slope, {chances, gates, keep, pull});
    });
  });
}

TEST_CASE("op gradients: mask_outputs") {
  check_gradients([](auto& s) {
    const int N = s.number(1, 6), K = s.number(1, 4);
    const auto value = s.input(N, K), masked = s.output(N, K);
    const ms::vec<int> slot = s.numbers(N, 0, 0), position = s.numbers(N, 0, 9), chosen = s.numbers(N * K, -1, 7);
    const ms::mat<const int> experts(chosen.data(), N, K);
    const ms::output_mask mask{0.4f, ms::seed{8}, 2, 1, {slot, position}};
    ms::mask_outputs(s.backend, masked.value, value.value, experts, mask);
    s.backward([&] { ms::mask_outputs(s.backend, value.gradient, masked.gradient, experts, mask); });
  });
}

TEST_CASE("op gradients: cross_entropy") {
  check_gradients([](auto& s) {
    constexpr double scale = 0.3;
    const int N = s.number(1, 5), V = s.number(2, 9);
    const auto logits = s.input(N, V);
    const ms::vec<int> targets = s.numbers(N, 0, V - 1);
    const auto losses = s.scratch(N), losses_again = s.scratch(N);
    const auto work = s.scratch(N, V);
    copy(work, logits.value);
    ms::cross_entropy(s.backend, losses, work, targets, 0);  // losses only
    for (const auto& loss : losses) s.add_to_loss(scale * loss);
    s.backward([&] {
      copy(logits.gradient, logits.value);
      ms::cross_entropy(s.backend, losses_again, logits.gradient, targets, scale);
      for (int n = 0; n < N; ++n) CHECK(losses_again[n] == losses[n]);
    });
  });
}

TEST_CASE("op gradients: distillation, whose teacher is a constant") {
  check_gradients([](auto& s) {
    constexpr double scale = 0.3, share = 0.6;
    const int N = s.number(1, 5), V = s.number(2, 9);
    const auto logits = s.input(N, V);
    const ms::vec<int> targets = s.numbers(N, 0, V - 1);
    const auto teacher = s.scratch(N, V);
    const auto losses = s.scratch(N), divergences = s.scratch(N);
    for (auto& t : teacher) t = double(s.number(-300, 300)) / 100;
    // The loss as it is defined, without the op.
    for (int n = 0; n < N; ++n) {
      using std::exp, std::log;
      auto q_sum = logits.value(n, 0) * 0.0, p_sum = q_sum;
      for (int v = 0; v < V; ++v) q_sum += exp(logits.value(n, v)), p_sum += exp(teacher(n, v));
      for (int v = 0; v < V; ++v) {
        const auto p = exp(teacher(n, v)) / p_sum, log_q = logits.value(n, v) - log(q_sum);
        s.add_to_loss(scale * share * p * (log(p) - log_q));
        if (v == targets[n]) s.add_to_loss(-scale * (1 - share) * log_q);
      }
    }
    s.backward([&] {
      copy(logits.gradient, logits.value);
      ms::distillation(s.backend, losses, divergences, logits.gradient, teacher, targets, scale, share);
      auto sum = s.loss() * 0.0;
      for (int n = 0; n < N; ++n) {
        CHECK(std::real(divergences[n]) >= -1e-12);
        sum += scale * ((1 - share) * losses[n] + share * divergences[n]);
      }
      CHECK(std::abs(sum - s.loss()) < 1e-12);
    });
  });
}

TEST_CASE("op gradients: gather_rows and scatter_rows are each other's backward") {
  check_gradients([](auto& s) {
    const int N = s.number(3, 6), D = s.number(1, 5);
    const auto x = s.input(N, D), below = s.input(N, D);
    const auto out = s.output(N, D);
    int selected[6], M = 0;
    for (int n = 0; n < N; ++n)
      if (n == 1 || (n > 1 && s.number(0, 1))) selected[M++] = n;  // not the first, always the second
    const ms::vec<const int> rows(selected, M);
    const auto few = s.scratch(M, D);
    copy(out.value, below.value);
    ms::gather_rows(s.backend, few, x.value, rows);
    ms::scatter_rows(s.backend, out.value, few, rows);
    s.backward([&] {
      const auto dfew = s.scratch(M, D), zeros = s.scratch(M, D);
      std::fill(zeros.begin(), zeros.end(), 0.0), std::fill(x.gradient.begin(), x.gradient.end(), 0.0);
      ms::gather_rows(s.backend, dfew, out.gradient, rows);
      ms::scatter_rows(s.backend, x.gradient, dfew, rows);
      copy(below.gradient, out.gradient);
      ms::scatter_rows(s.backend, below.gradient, zeros, rows);
    });
  });
}

// Loshchilov and Hutter 2019, algorithm 2, one weight at a time, as it is written there.
TEST_CASE("adamw_update against the scalar recurrence") {
  constexpr int weights = 5, steps = 7;
  constexpr double beta1 = 0.8, beta2 = 0.95, epsilon = 1e-3, decay = 0.2, clip = 0.4;
  ms::reference<double> backend;
  std::vector<double> w = random_values<double>(weights, 1), m(weights), v(weights);
  std::vector<double> w_want = w, m_want = m, v_want = v;
  for (int t = 1; t <= steps; ++t) {
    const double lr = 0.1 / t;
    const std::vector<double> gradient = random_values<double>(weights, 10 + std::uint64_t(t));
    const ms::adamw_step step{.lr = lr,
                              .beta1 = beta1,
                              .beta2 = beta2,
                              .epsilon = epsilon,
                              .decay = decay,
                              .correction1 = 1 - std::pow(beta1, t),
                              .correction2 = 1 - std::pow(beta2, t),
                              .gradient_scale = clip};
    ms::adamw_update(backend, {w.data(), weights}, {m.data(), weights}, {v.data(), weights}, {gradient.data(), weights},
                     step);
    for (std::size_t i = 0; i < weights; ++i) {
      const double g = clip * gradient[i];
      m_want[i] = beta1 * m_want[i] + (1 - beta1) * g;
      v_want[i] = beta2 * v_want[i] + (1 - beta2) * g * g;
      const double m_hat = m_want[i] / (1 - std::pow(beta1, t)), v_hat = v_want[i] / (1 - std::pow(beta2, t));
      w_want[i] -= lr * (m_hat / (std::sqrt(v_hat) + epsilon) + decay * w_want[i]);
      CHECK(w[i] == doctest::Approx(w_want[i]).epsilon(1e-12));
      CHECK(m[i] == doctest::Approx(m_want[i]).epsilon(1e-12));
      CHECK(v[i] == doctest::Approx(v_want[i]).epsilon(1e-12));
    }
  }
}
