// The CPU backend against the reference in double, by normalised mean squared error Σ (got − want)² / Σ want²:
// whole training steps in the shapes that models really have, with odd sizes, then each op on random shapes.
// ctest: optimised
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>

#include "tiny.hpp"

using namespace tests;

namespace {

struct everything : ms::variant {
  using expert_dropout = ms::expert_dropout::bernoulli;
  using layer_dropout = ms::layer_dropout::exponential;
  using exit_head = ms::exit_head::own;
};

template <class B> struct outcome {
  double loss;
  std::vector<double> gradient;
};

template <class B>
outcome<B> step(const ms::config<everything>& c, const std::vector<double>& weights, int sequences, int length) {
  using T = ms::scalar_t<B>;
  using W = ms::weight_t<B>;
  ms::model<everything, B> m(c, typename ms::model<everything, B>::uninitialised{});
  for (ms::index_t i = 0; i < m.block().size(); ++i) m.block()[i] = W(float(weights[std::size_t(i)]));
  const std::vector<int> inputs = random_tokens(sequences * length, c.sizes.vocab, 3);
  const std::vector<int> targets = random_tokens(sequences * length, c.sizes.vocab, 4);
  ms::buffer<T> gradient(m.block().size());
  ms::model_weights<everything, T> grads;
  ms::bind_weights<everything, T>(c, grads, gradient.data());
  ms::arena memory;
  const auto losses = ms::loss_and_gradient(
      m, ms::batch{{inputs.data(), inputs.size()}, {targets.data(), targets.size()}, sequences, length},
      ms::layerskip_weights(c.exits, c.sizes.layers, 0.7), grads, ms::seed{5}, 9, memory);
  outcome<B> out{double(losses.total), {}};
  for (const T& g : gradient.view()) out.gradient.push_back(double(g));
  return out;
}

void compare(ms::sizes s, int sequences, int length) {
  ms::config<everything> c{.sizes = s,
                           .exits = ms::exits_every(1, s.layers),
                           .expert_dropout = {.p = 0.3f},
                           .layer_dropout = {.p_max = 0.4f}};
  ms::model<everything, ms::cpu<ms::bf16>> drawn(c, ms::seed{1});  // weights that bf16 holds exactly
  std::vector<double> weights;
  for (const ms::bf16 w : drawn.block()) weights.push_back(double(float(w)));
  const auto exact = step<ms::reference<double>>(c, weights, sequences, length);
  const auto single = step<ms::cpu<float>>(c, weights, sequences, length);
  const auto half = step<ms::cpu<ms::bf16>>(c, weights, sequences, length);
  CHECK(single.loss == doctest::Approx(exact.loss).epsilon(1e-5));
  CHECK(half.loss == doctest::Approx(exact.loss).epsilon(1e-5));
  // Products of factors rounded to bf16, 8 bits of them, attention's too: near, all in all, and not nearer.
  const auto rounded = step<ms::cpu<float, ms::isa::native, ms::bf16>>(c, weights, sequences, length);
  CHECK(rounded.loss == doctest::Approx(exact.loss).epsilon(1e-2));
  double off = 0, all = 0;
  for (std::size_t i = 0; i < exact.gradient.size(); ++i)
    off += std::pow(rounded.gradient[i] - exact.gradient[i], 2), all += std::pow(exact.gradient[i], 2);
  CAPTURE(std::sqrt(off / all));
  CHECK(off < 0.05 * 0.05 * all);
  CHECK(off > 1e-4 * 1e-4 * all);
  for (const ms::tensor_info& t : drawn.tensors()) {
    double error = 0, error_half = 0, square = 0;
    for (std::size_t i = std::size_t(t.offset); i < std::size_t(t.offset + t.size); ++i) {
      error += std::pow(single.gradient[i] - exact.gradient[i], 2);
      error_half += std::pow(half.gradient[i] - exact.gradient[i], 2);
      square += std::pow(exact.gradient[i], 2);
    }
    CAPTURE(t.name);
    CHECK(error <= 1e-9 * square + 1e-20);
    CHECK(error_half <= 1e-9 * square + 1e-20);
  }
}

}  // namespace

TEST_CASE("a training step on the CPU: few rows") { compare(tiny_sizes, 2, 6); }
TEST_CASE("a training step on the CPU: many rows, odd sizes") { compare(tiny_sizes, 5, 31); }
TEST_CASE("a training step on the CPU: sizes of whole vectors") {
  compare({.layers = 3,
           .dim = 64,
           .heads = 4,
           .kv_heads = 2,
           .ffn = 48,
           .experts = 6,
           .vocab = 96,
           .context = 128,
           .moe_every = 2,
           .dense_ffn = 80},
          3, 100);
}

namespace {

/// What one backend got from an op: the op's test runs once for each backend, and draws the same numbers each time.
/// Every array is an allocation of its own, so that the address sanitizer sees its ends.
template <class B> class side {
  using T = ms::scalar_t<B>;
  using W = ms::weight_t<B>;
  static constexpr std::uint64_t lane = 7;  // draws of this test

 public:
  B backend;
  ms::arena memory;

  explicit side(std::uint64_t seed) : draw_{{seed}, ms::stream::user} {}

  /// A whole number in [low, high].
  int number(int low, int high) { return low + int(draw_.below(std::uint64_t(high - low + 1), ++drawn_, lane)); }
  /// Rows of a call: one to sixteen, where the decode kernels run, or more.
  int rows(int most = 90) { return number(0, 1) ? number(1, 16) : number(17, most); }
  ms::vec<int> numbers(ms::index_t count, int low, int high) {
    const ms::vec<int> list = ints_.emplace_back(count).view();
    for (int& i : list) i = number(low, high);
    return list;
  }
  ms::mat<int> numbers(ms::index_t rows, ms::index_t cols, int low, int high) {
    return {numbers(rows * cols, low, high).data(), rows, cols};
  }

  /// Activations in [-1, 1) that float holds exactly.
  template <class... Extents> auto input(Extents... extents) {
    const auto v = array<T>(extents...);
    for (T& x : v) x = T(next());
    return v;
  }
  /// Weights in [-1, 1) that bf16 holds exactly.
  template <class... Extents> auto weights(Extents... extents) {
    const auto v = array<W>(extents...);
    for (W& w : v) w = W(float(ms::bf16(next())));
    return ms::view<const W, sizeof...(Extents)>(v);
  }
  /// Something that the op writes (=): NaN before. It is compared.
  template <class... Extents> auto output(Extents... extents) {
    const auto v = scratch(extents...);
    results_.push_back({v.data(), v.size()});
    return v;
  }
  /// Something that the op adds to or writes in part. It is compared.
  template <class... Extents> auto sum(Extents... extents) {
    const auto v = input(extents...);
    results_.push_back({v.data(), v.size()});
    return v;
  }
  /// Something that the op writes, of which nobody asks what: NaN before.
  template <class... Extents> auto scratch(Extents... extents) {
    const auto v = array<T>(extents...);
    std::fill(v.begin(), v.end(), std::numeric_limits<T>::quiet_NaN());
    return v;
  }
  /// A number to compare.
  void result(double value) { *output(1).data() = T(value); }

  const std::vector<ms::vec<T>>& results() const { return results_; }

 private:
  float next() { return 2 * draw_.uniform(++drawn_, lane + 1) - 1; }
  template <class U, class... Extents> ms::view<U, sizeof...(Extents)> array(Extents... extents) {
    const ms::index_t size = ms::view<U, sizeof...(Extents)>(nullptr, extents...).size();
    if constexpr (std::is_same_v<U, T>) return {values_.emplace_back(size).data(), extents...};
    else return {weights_.emplace_back(size).data(), extents...};
  }

  ms::draws draw_;
  std::uint64_t drawn_ = 0;
  std::deque<ms::buffer<T>> values_;
  std::deque<ms::buffer<W>> weights_;
  std::deque<ms::buffer<int>> ints_;
  std::vector<ms::vec<T>> results_;
};

/// Runs the body on reference<double> and on B with the same draws, and compares all results: the square of the error,
/// relative to theirs.
template <class B, class Body> void compare_on(std::uint64_t seed, Body&& body, double tolerance = 1e-11) {
  side<ms::reference<double>> exact(seed);
  side<B> fast(seed);
  body(exact);
  body(fast);
  REQUIRE(fast.results().size() == exact.results().size());
  for (std::size_t r = 0; r < exact.results().size(); ++r) {
    const auto want = exact.results()[r];
    const auto got = fast.results()[r];
    REQUIRE(got.size() == want.size());
    double error = 0, square = 0;
    for (ms::index_t i = 0; i < want.size(); ++i) {
      error += std::pow(double(got[i]) - want[i], 2);
      square += want[i] * want[i];
    }
    CAPTURE(r);
    CHECK(error <= tolerance * square + 1e-24);  // false for NaN
  }
}

/// Twenty random shapes, weights in f32 and in bf16. In which order a body's draws happen that are arguments of one
/// call is the compiler's choice, the same one on both sides.
template <class Body> void compare_op(Body&& body) {
  for (std::uint64_t repeat = 0; repeat < 20; ++repeat) {
    CAPTURE(repeat);
    compare_on<ms::cpu<float>>(500 + repeat, body);
    compare_on<ms::cpu<ms::bf16>>(500 + repeat, body);
  }
}

/// The same, and with products in bf16, whose factors have 8 bits.
template <class Body> void compare_op_and_rounded(Body&& body) {
  compare_op(body);
  for (std::uint64_t repeat = 0; repeat < 20; ++repeat)
    compare_on<ms::cpu<ms::bf16, ms::isa::native, ms::bf16>>(500 + repeat, body, 1e-4);
}

/// Rows of up to three sequences, those of one sequence together and in order, some behind older ones.
struct random_rows {
  std::vector<int> slot, position;
  int slots, context = 0;

  template <class S> explicit random_rows(S& s) : slots(s.number(1, 3)) {
    const bool few = s.number(0, 1);
    for (int i = 0; i < slots; ++i) {
      int next = s.number(0, 1) ? 0 : s.number(1, 100);
      for (int count = few ? s.number(1, 5) : s.number(17, 140); count > 0; --count)
        slot.push_back(i), position.push_back(next++);
      context = std::max(context, next + s.number(0, 3));
    }
  }
  operator ms::token_rows() const { return {{slot.data(), slot.size()}, {position.data(), position.size()}}; }
  ms::index_t size() const { return ms::index_t(slot.size()); }
};

template <class S> ms::attention_shape random_attention(S& s) {
  ms::attention_shape shape{.kv_heads = s.number(1, 3), .head_dim = 2 * s.number(1, 20)};
  shape.heads = shape.kv_heads * s.number(1, 3);
  shape.scale = 1 / std::sqrt(float(shape.head_dim));
  shape.rotary_dim = 2 * s.number(0, shape.head_dim / 2);  // 0: all
  return shape;
}

}  // namespace

TEST_CASE("cpu ops: linear") {
  compare_op_and_rounded([](auto& s) {
    const int N = s.rows(), I = s.number(1, 150), O = s.number(1, 150), residual = s.number(0, 2);
    const auto x = s.input(N, I);
    const auto w = s.weights(O, I);
    if (residual == 0) return ms::linear(s.backend, s.output(N, O), x, w);
    if (residual == 1) return ms::linear(s.backend, s.output(N, O), x, w, s.input(N, O));
    const auto y = s.sum(N, O);
    ms::linear(s.backend, y, x, w, y);
  });
}

TEST_CASE("cpu ops: linear_backward") {
  compare_op([](auto& s) {
    const int N = s.rows(), I = s.number(1, 150), O = s.number(1, 150);
    const auto x = s.input(N, I), dy = s.input(N, O);
    const auto w = s.weights(O, I);
    ms::linear_backward(s.backend, s.output(N, I), s.sum(O, I), dy, x, w);
    ms::linear_backward(s.backend, s.output(N, I), {}, dy, x, w);
    ms::linear_backward(s.backend, {}, s.sum(O, I), dy, x, w);
  });
}

TEST_CASE("cpu ops: rms_norm and norm_linear") {
  compare_op([](auto& s) {
    const int N = s.rows(), D = s.number(1, 200), O = s.number(1, 40);
    const auto x = s.input(N, D);
    const auto gain = s.weights(D);
    ms::rms_norm(s.backend, s.output(N, D), x, gain, 1e-3f);
    ms::norm_linear(s.backend, s.output(N, O), s.output(N, D), x, gain, s.weights(O, D), 1e-3f);
  });
}

TEST_CASE("cpu ops: rms_norm_backward and norm_linear_backward") {
  compare_op([](auto& s) {
    const int N = s.number(0, 3) ? s.rows() : s.number(500, 800), D = s.number(1, 80), O = s.number(1, 30);
    const auto x = s.input(N, D), dy = s.input(N, D);
    const auto gain = s.weights(D);
    ms::rms_norm_backward(s.backend, s.sum(N, D), s.sum(D), dy, x, gain, 1e-3f);
    ms::norm_linear_backward(s.backend, s.sum(N, D), s.output(N, D), s.sum(D), s.sum(O, D), s.input(N, O), x,
                             s.input(N, D), gain, s.weights(O, D), 1e-3f);
  });
}

TEST_CASE("cpu ops: embed, gather_rows, scatter_rows") {
  compare_op([](auto& s) {
    const int N = s.rows(), V = s.number(1, 60), D = s.number(1, 80);
    const ms::vec<int> tokens = s.numbers(N, 0, V - 1);
    ms::embed(s.backend, s.output(N, D), tokens, s.weights(V, D));
    ms::embed_backward(s.backend, s.sum(V, D), s.input(N, D), tokens);
    ms::gather_rows(s.backend, s.output(N, D), s.input(V, D), tokens);
    ms::scatter_rows(s.backend, s.sum(V, D), s.input(N, D), tokens);  // the last one of equal rows stays
  });
}

TEST_CASE("cpu ops: rope_append, with queries and without") {
  compare_op([](auto& s) {
    const random_rows rows(s);
    const ms::attention_shape shape = random_attention(s);
    const auto call = [&](int q_dim, auto q) {
      const auto keys = s.sum(rows.slots, rows.context, shape.kv_dim());
      const auto values = s.sum(rows.slots, rows.context, shape.kv_dim());
      ms::rope_append(s.backend, q, {keys, values}, s.input(rows.size(), q_dim + 2 * shape.kv_dim()), rows, shape);
    };
    const auto q = s.output(rows.size(), shape.q_dim());
    call(shape.q_dim(), q);
    call(0, decltype(q){});
  });
}

TEST_CASE("cpu ops: rope_append_backward") {
  compare_op([](auto& s) {
    const random_rows rows(s);
    const ms::attention_shape shape = random_attention(s);
    const auto dkeys = s.input(rows.slots, rows.context, shape.kv_dim());
    const auto dvalues = s.input(rows.slots, rows.context, shape.kv_dim());
    ms::rope_append_backward(s.backend, s.output(rows.size(), shape.q_dim() + 2 * shape.kv_dim()),
                             s.input(rows.size(), shape.q_dim()), {dkeys, dvalues}, rows, shape);
  });
}

TEST_CASE("cpu ops: attend and attend_backward") {
  compare_op([](auto& s) {
    const random_rows rows(s);
    const ms::attention_shape shape = random_attention(s);
    const auto cache = [&](auto&& make) { return make(rows.slots, rows.context, shape.kv_dim()); };
    const auto input = [&](auto... extents) { return s.input(extents...); };
    const auto sum = [&](auto... extents) { return s.sum(extents...); };
    const auto keys = cache(input), values = cache(input), dkeys = cache(sum), dvalues = cache(sum);
    const auto q = s.input(rows.size(), shape.q_dim()), dout = s.input(rows.size(), shape.q_dim());
    ms::attend(s.backend, s.output(rows.size(), shape.q_dim()), q, {keys, values}, rows, shape, s.memory);
    ms::attend_backward(s.backend, s.output(rows.size(), shape.q_dim()), {dkeys, dvalues}, dout, q, {keys, values},
                        rows, shape, s.memory);
  });
}

TEST_CASE("cpu ops: swiglu and swiglu_backward") {
  compare_op([](auto& s) {
    const int M = s.rows(), F = s.number(1, 100);
    const auto gate_up = s.input(M, 2 * F), dact = s.input(M, F), in_place = s.sum(M, 2 * F);
    ms::swiglu(s.backend, s.output(M, F), gate_up);
    ms::swiglu_backward(s.backend, s.output(M, 2 * F), dact, gate_up);
    ms::swiglu_backward(s.backend, in_place, dact, in_place);
  });
}

TEST_CASE("cpu ops: experts and experts_backward") {
  compare_op_and_rounded([](auto& s) {
    const bool many = s.number(0, 4) == 0;  // more rows of one expert than a task takes
    const int N = many ? s.number(300, 400) : s.rows(), D = s.number(1, many ? 30 : 60), F = s.number(1, 40);
    const int E = s.number(3, 9), K = s.number(1, 3), popular = many ? 4 * E : 0;
    const ms::mat<int> chosen = s.numbers(N, K, 0, E - 1 + popular);
    for (int n = 0; n < N; ++n)  // distinct experts, upwards or downwards from the first
      for (int k = 0, step = s.number(0, 1) ? 1 : E - 1; k < K; ++k)
        chosen(n, k) = (std::min(chosen(n, 0), E - 1) + k * step) % E;
    const ms::dispatch d = ms::plan_dispatch(chosen, E, s.number(0, 1) ? 0 : (N * K + E - 1) / E, s.memory);
    const auto h = s.input(N, D), gate = s.input(N, K);
    const auto gate_up_weights = s.weights(E, 2 * F, D), down = s.weights(E, D, F);
    const auto gate_up = s.output(d.size(), 2 * F);
    const auto residual = s.input(N, D), on_itself = s.sum(N, D);
    const ms::mat<int> slot = s.numbers(1, N, 0, 3), position = s.numbers(1, N, 0, 99);
    const ms::activation_mask mask{.p = s.number(0, 1) ? 0.4f : 0.f,
                                   .from = {7},
                                   .step = 3,
                                   .layer = 2,
                                   .rows = {{slot.data(), N}, {position.data(), N}}};
    ms::experts(s.backend, on_itself, gate_up, on_itself, h, {{}, chosen, gate, {}}, d, {gate_up_weights, down},
                s.memory, mask);
    ms::experts(s.backend, s.output(N, D), gate_up, residual, h, {{}, chosen, gate, {}}, d, {gate_up_weights, down},
                s.memory, mask);
    // Backward overwrites its gate_up: the contract leaves nothing to compare but that gradient.
    const auto dgate_up = s.sum(d.size(), 2 * F);
    ms::experts_backward(s.backend, s.output(N, D), s.output(N, K), {s.sum(E, 2 * F, D), s.sum(E, D, F)}, s.input(N, D),
                         dgate_up, h, {{}, chosen, gate, {}}, d, {gate_up_weights, down}, s.memory, mask);
  });
}

TEST_CASE("cpu ops: route, route_backward, balance_loss") {
  const auto compare_router = [](const auto& router) {
    using R = std::decay_t<decltype(router)>;
    compare_op([&](auto& s) {
      using T = ms::scalar_t<std::decay_t<decltype(s.backend)>>;
      const int K = router.experts_per_token, N = s.rows(300), E = 2 * s.number(K + 2, 20);
      std::vector<ms::expert_set> sets(s.number(0, 1) ? 1 : std::size_t(N));
      for (ms::expert_set& set : sets) {
        set = ms::expert_set::first(E);
        set.erase(s.number(0, E - 1)).erase(s.number(0, E - 1));
      }
      // Sequences of 1 to 40 tokens, behind 3 earlier ones.
      const ms::vec<int> slot = s.numbers(N, 0, 0), position = s.numbers(N, 0, 0);
      for (int n = 1; n < N; ++n) {
        const bool starts = s.number(0, 39) == 0;
        slot[n] = slot[n - 1] + starts, position[n] = starts ? 0 : position[n - 1] + 1;
      }
      const int slots = slot[N - 1] + 1;
      for (int& p : position) p += 3;
      const ms::mat<int> past = s.numbers(slots * (N + 3), K, 0, 1);
      for (ms::index_t i = 0; i < past.rows(); ++i)
        for (int k = 0; k < K; ++k) past(i, k) = k;
      ms::routing_call<T> call{.alive = {{sets.data(), ms::index_t(sets.size())}},
                               .rows = {slot, position, s.numbers(N, 0, 99)},
                               .past = {past.data(), slots, N + 3, K},
                               .layer = s.number(0, 3),
                               .training = true,
                               .from = ms::seed{5},
                               .step = 3};
      if (s.number(0, 1)) call.bias = s.input(E);
      const auto logits = s.input(N, E * ms::logits_per_expert<R>), probability = s.output(N, E), gate = s.output(N, K);
      const auto load = s.output(E);
      const ms::mat<int> chosen = s.numbers(N, K, -1, -1);
      const ms::routing<T> r{probability, chosen, gate, load};
      ms::route(s.backend, r, logits, router, call, s.memory);
      for (const int e : chosen) s.result(e);
      for (const int e : past) s.result(e);
      const auto losses = losses_of(s.backend, r, logits, call, s.memory);
      s.result(losses.balance), s.result(losses.z), s.result(losses.change);
      const ms::auxiliary_weights weights{.balance = 0.3, .z = s.number(0, 1) * 0.2, .change = s.number(0, 1) * 0.4};
      ms::route_backward(s.backend, s.output(N, logits.cols()), s.input(N, K), logits, r, router, call, weights,
                         s.memory);
    });
  };
  using namespace ms::router;
  compare_router(top_k<2>{});
  compare_router(top_k<4>{.renormalise = false});
  compare_router(top_k<3>{.order = softmax_order::after_selection});
  compare_router(switch_top1{});
  compare_router(noisy_top_k<2>{});
  compare_router(sigmoid_top_k<2>{.scale = 2.5f});
  compare_router(sigmoid_top_k<2>{.groups = 2, .best_groups = 1});
  compare_router(hash<3>{});
  compare_router(expert_choice<4>{});
  compare_router(segment<top_k<2>, 4>{});
  compare_router(segment<top_k<3>, 2, 1>{});
  compare_router(segment_group<top_k<2>, 4, 4>{});
  compare_router(sticky<top_k<2>>{.bonus = 0.3f});
}

TEST_CASE("cpu ops: gate_rows, gate_rows_backward") {
  compare_op([](auto& s) {
    const int N = s.rows(200), F = s.number(1, 60);
    const auto x = s.input(N, F), g = s.input(N, 1), dy = s.sum(N, F);
    ms::gate_rows(s.backend, s.output(N, F), x, g);
    ms::gate_rows_backward(s.backend, dy, s.output(N, 1), dy, x, g);
  });
}

TEST_CASE("cpu ops: cross_entropy, with gradient and without") {
  compare_op([](auto& s) {
    const int N = s.rows(), V = s.number(1, 300);
    const ms::vec<int> targets = s.numbers(N, 0, V - 1);
    const auto logits = s.sum(N, V), large = s.input(N, V);
    for (auto& x : large) x *= 60;
    ms::cross_entropy(s.backend, s.output(N), logits, targets, 0.25);
    ms::cross_entropy(s.backend, s.output(N), large, targets, 0);
  });
}

TEST_CASE("cpu ops: distillation") {
  compare_op([](auto& s) {
    const int N = s.rows(), V = s.number(1, 300);
    const ms::vec<int> targets = s.numbers(N, 0, V - 1);
    const auto logits = s.sum(N, V), teacher = s.input(N, V);
    for (auto& x : teacher) x *= 6;
    ms::distillation(s.backend, s.output(N), s.output(N), logits, teacher, targets, 0.25, 0.7);
  });
}

TEST_CASE("cpu ops: accumulate, fill_with, sum_of_squares") {
  compare_op([](auto& s) {
    const int n = s.number(0, 2) ? s.number(1, 9000) : s.number(32768, 50000);
    const auto x = s.input(n);
    ms::accumulate(s.backend, s.sum(n), x);
    ms::fill_with(s.backend, s.output(n), 0);
    ms::fill_with(s.backend, s.output(n), -1.25);
    s.result(ms::sum_of_squares(s.backend, x));
  });
}

TEST_CASE_TEMPLATE("cpu ops: store_weights rounds to what is stored", W, float, ms::bf16) {
  ms::cpu<W> backend;
  for (const int n : {1, 37, 4099, 40001}) {
    const std::vector<float> master = random_values<float>(std::size_t(n), 21);
    std::vector<W> stored(master.size());
    ms::store_weights(backend, {stored.data(), n}, {master.data(), n});
    CHECK(std::equal(master.begin(), master.end(), stored.begin(),
                     [](float from, W to) { return float(W(from)) == float(to); }));
  }
}

TEST_CASE("cpu ops: combine") {
  compare_op([](auto& s) {
    const int n = s.number(0, 2) ? s.number(1, 9000) : s.number(32768, 50000);
    const auto x = s.input(n), y = s.sum(n);
    ms::combine(s.backend, s.output(n), 0.3, x, -1.7, y);
    ms::combine(s.backend, y, 0.9, y, 0.2, x);
  });
}

TEST_CASE("cpu ops: adamw_update, plain and cautious") {
  compare_op([](auto& s) {
    const int n = s.number(0, 2) ? s.number(1, 9000) : s.number(32768, 50000);
    const auto w = s.sum(n), m = s.sum(n), v = s.sum(n);
    for (auto& x : v) x *= x;  // a mean of squares
    const ms::adamw_step step{.lr = 0.01,
                              .beta1 = 0.9,
                              .beta2 = 0.99,
                              .epsilon = 1e-3,
                              .decay = 0.1,
                              .correction1 = 0.4,
                              .correction2 = 0.3,
                              .gradient_scale = 0.7,
                              .cautious = s.number(0, 1) == 1};
    ms::adamw_update(s.backend, w, m, v, s.input(n), step);
  });
}
