// The phases of the CUDA backend, run by the emulator: every op agrees with its plain loops in three orders of threads,
// and what a device could not do is an error.
#include <doctest/doctest.h>

#include <bit>

#include "cases.hpp"
#include "downstream/mine.hpp"
#include "models.hpp"
#include "moeskip/parts/router/grouped_top_k.hpp"
#include "moeskip/parts/router/hash.hpp"
#include "moeskip/parts/router/segment_group.hpp"
#include "moeskip/parts/router/sigmoid_top_k.hpp"
#include "moeskip/parts/router/smooth.hpp"
#include "moeskip/parts/router/switch_top1.hpp"

namespace tests {

/// A step that knows nothing of lanes, in a router whose other steps are made by warps.
struct halved : ms::router::top_k<3> {
  template <class T> MOESKIP_HD void weigh(const ms::routed_token<T>& t) const {
    ms::router::weigh_by_probability<3>(t);
    for (int k = 0; k < 3; ++k) t.gate[k] /= T(2);
  }
  friend bool operator==(const halved&, const halved&) = default;
};

}  // namespace tests

using namespace tests;

namespace {

constexpr int orders = sanitized ? 1 : 3;  // of threads

/// The emulator with another number of threads in each block.
template <int Threads> struct with_threads : ms::driver::emulator {
  template <class Phase> static void launch(const ms::launch_shape& shape, const Phase& phase) {
    ms::driver::emulator::launch({shape.blocks, Threads, shape.shared}, phase);
  }
};
template <int Threads> using threads_of = ms::cuda<ms::bf16, with_threads<Threads>, ms::bf16>;

/// Threads of a block that do not agree where to wait.
struct divergent {
  static constexpr const char* name = "divergent";
  template <class Block> void operator()(const Block& b) const { b.sync(b.warp()); }
};

}  // namespace

TEST_CASE("every op of the emulated CUDA backend agrees with plain loops in double, in three orders of threads") {
  each_case([](const auto& c) {
    for (const std::uint64_t seed : {1u, 2u}) {
      const auto expected = run<ms::reference<double>>(c, seed);
      for (int order = 0; order < orders; ++order) {
        CAPTURE(c.phase);
        CAPTURE(c.many);
        CAPTURE(seed);
        CAPTURE(order);
        const emulated e({.order = order});
        CHECK(difference(expected, run<ms::emulated_cuda<float>>(c, seed)) < 3e-5);
      }
      // Weights are bf16's numbers; tensor cores round activations too, whose largest errors a chain of ops multiplies.
      CHECK(difference(expected, run<ms::emulated_cuda<ms::bf16, float>>(c, seed)) < 3e-5);
      CHECK(difference(expected, run<ms::emulated_cuda<ms::bf16>>(c, seed)) < 0.1);
    }
  });
}

TEST_CASE("dense products handed to a BLAS agree with plain loops in double") {
  const emulated e({});
  ms::emulation::here().gemm = true;
  each_case([](const auto& c) {
    for (const std::uint64_t seed : {1u, 2u}) {
      CAPTURE(c.phase);
      CAPTURE(c.many);
      CAPTURE(seed);
      const auto expected = run<ms::reference<double>>(c, seed);
      CHECK(difference(expected, run<ms::emulated_cuda<float>>(c, seed)) < 3e-5);
      CHECK(difference(expected, run<ms::emulated_cuda<ms::bf16, float>>(c, seed)) < 3e-5);
      CHECK(difference(expected, run<ms::emulated_cuda<ms::bf16>>(c, seed)) < 0.1);
    }
  });
  for (const std::uint64_t seed : {1u, 2u, 3u}) {
    CAPTURE(seed);
    const auto expected = run<ms::reference<double>>(rounded_case{}, seed);
    CHECK(difference(expected, run<ms::emulated_cuda<ms::bf16>>(rounded_case{}, seed)) < 3e-6);
    CHECK(difference(expected, run<ms::emulated_cuda<float, ms::bf16>>(rounded_case{}, seed)) < 3e-6);
  }
}

TEST_CASE("matrices of one row or column, and a residual beside the result, are handed to a BLAS as what they are") {
  const emulated e({});
  ms::emulation::here().gemm = true;
  for (const ms::index_t I : {1, 5})
    for (const ms::index_t O : {1, 7}) {
      CAPTURE(I);
      CAPTURE(O);
      const auto c = [&](auto& t) {
        const ms::index_t N = 19;
        const auto x = t.rounded(N, I), y = t.numbers(N, O), residual = t.numbers(N, O), dx = t.numbers(N, I);
        const auto w = t.weights(O, I);
        const auto dw = t.numbers(O, I), dy = t.rounded(N, O);
        ms::linear(t.backend, y, x, w, residual);
        ms::linear_backward(t.backend, dx, dw, dy, x, w);
        t.keep(y, residual, dx, dw);
      };
      const long long before = ms::emulation::here().gemms;
      const auto expected = run<ms::reference<double>>(c, 1);
      CHECK(difference(expected, run<ms::emulated_cuda<float>>(c, 1)) < 3e-6);
      CHECK(difference(expected, run<ms::emulated_cuda<ms::bf16>>(c, 1)) < 3e-6);
      CHECK(difference(expected, run<ms::emulated_cuda<ms::bf16, float>>(c, 1)) < 3e-6);
      CHECK(ms::emulation::here().gemms == before + 9);
    }
}

TEST_CASE("what is handed to a BLAS: dense products of calls of more than 16 rows, where there is one") {
  using B = ms::emulated_cuda<ms::bf16>;
  const auto gemms = [](ms::index_t N) {
    trial<B> t(1);
    const ms::index_t I = 24, O = 9;
    const auto x = t.numbers(N, I), y = t.numbers(N, O), dx = t.numbers(N, I), dw = t.numbers(O, I);
    const auto w = t.weights(O, I);
    const long long before = ms::emulation::here().gemms;
    ms::linear(t.backend, y, x, w);
    ms::linear_backward(t.backend, dx, dw, y, x, w);
    ms::settle(t.backend);
    return ms::emulation::here().gemms - before;
  };
  const emulated e({});
  CHECK(B::multiplies_by() == std::string("own kernels"));
  CHECK(gemms(17) == 0);
  ms::emulation::here().gemm = true;
  CHECK(B::multiplies_by() == std::string("plain loops"));
  CHECK(gemms(16) == 0);
  CHECK(gemms(17) == 3);
  const long long before = ms::emulation::here().gemms;
  run<B>(crowded_case{}, 1);  // of experts
  CHECK(ms::emulation::here().gemms == before);

  float c = 0;  // of 2 × 1 and 1 × 1
  CHECK_THROWS_WITH_AS(
      ms::driver::emulator::gemm({.a = {&c, 1, false}, .b = {&c, 1, false}, .c = &c, .m = 2, .n = 1, .k = 1}),
      "gemm of 2, 1, 1: a leading dimension is too small, got 1 and 1", ms::error);
}

TEST_CASE("a warp routes as one thread does, whatever the router knows of lanes") {
  using namespace ms::router;
  static_assert(ms::made_by_warps<biased<sticky<top_k<1>>>> && ms::made_by_warps<smooth<segment<top_k<4>, 3, 1>>>);
  static_assert(!ms::made_by_warps<tempered> && !ms::made_by_warps<halved> && !ms::made_by_warps<sticky<halved>>);
  const auto alike = [](const auto& router) {
    using R = std::decay_t<decltype(router)>;
    for (const auto& rows : {std::pair{1, 1}, std::pair{3, 5}, std::pair{20, 13}})
      for (int order = 0; order < orders; ++order) {
        CAPTURE(full_name<R>());
        CAPTURE(rows.first);
        CAPTURE(order);
        const route_case<R> c{rows.first, rows.second, router};
        const auto seed = std::uint64_t(order) + 1;
        const auto expected = run<ms::reference<double>>(c, seed);
        const emulated e({.order = order});
        const auto got = run<ms::emulated_cuda<float>>(c, seed);
        CHECK(got[0] == expected[0]);  // choices
        CHECK(got[1] == expected[1]);  // those that were remembered
        CHECK(difference(expected, got) < 3e-5);
      }
  };
  alike(top_k<8>{}), alike(top_k<2>{.renormalise = false}), alike(switch_top1{}), alike(noisy_top_k<3>{});
  alike(hash<4>{}), alike(grouped_top_k<6>{.groups = 8, .best_groups = 3, .scale = 2});
  alike(sigmoid_top_k<6>{}), alike(sigmoid_top_k<6>{.groups = 4, .best_groups = 2, .renormalise = false});
  alike(sticky<top_k<2>>{}), alike(biased<sticky<sigmoid_top_k<2>>>{}),
      alike(segment<top_k<2>, 3>{.base = {.renormalise = false}}), alike(smooth<segment<top_k<4>, 3, 1>>{});
  alike(segment_group<top_k<2>, 4, 8>{}), alike(tempered{}), alike(sticky<tempered>{}), alike(halved{});
  alike(sticky<halved>{});
}

TEST_CASE("one phase projects, normalises, scores, routes and sorts as the ops do that it stands for") {
  using namespace ms::router;
  const auto alike = [](const auto& router) {
    using R = std::decay_t<decltype(router)>;
    for (const bool many : {false, true}) {
      const norm_route_case<R> c{many, router};
      const auto expected = run<ms::reference<double>>(c, 1);
      for (int order = 0; order < orders; ++order) {
        CAPTURE(full_name<R>());
        CAPTURE(many);
        CAPTURE(order);
        const emulated e({.order = order});
        CHECK(difference(expected, run<ms::emulated_cuda<float>>(c, 1)) < 3e-5);
        CHECK(difference(expected, run<ms::emulated_cuda<ms::bf16>>(c, 1)) < 3e-5);
        if (many) continue;
        CHECK(difference(expected, run<threads_of<128>>(c, 1)) < 3e-5);
        CHECK(difference(expected, run<threads_of<512>>(c, 1)) < 3e-5);
      }
    }
  };
  alike(top_k<8>{}), alike(biased<sticky_router>{}), alike(tempered{}), alike(sticky<halved>{});
  alike(hash<2>{});  // without scores there is nothing to fuse
}

TEST_CASE("tensor cores are exact but for rounding: numbers of bf16 give sums of double") {
  for (int order = 0; order < orders; ++order) {
    CAPTURE(order);
    const rounded_case c;
    const auto seed = std::uint64_t(order) + 1;
    const auto expected = run<ms::reference<double>>(c, seed);
    const emulated e({.order = order});
    CHECK(difference(expected, run<ms::emulated_cuda<ms::bf16>>(c, seed)) < 3e-6);
    CHECK(difference(expected, run<ms::emulated_cuda<float, ms::bf16>>(c, seed)) < 3e-6);
  }
}

TEST_CASE("few rows of many numbers") {
  for (int order = 0; order < orders; ++order) {
    CAPTURE(order);
    const auto seed = std::uint64_t(order) + 1;
    const auto expected = run<ms::reference<double>>(long_rows_case{}, seed);
    const emulated e({.order = order});
    CHECK(difference(expected, run<ms::emulated_cuda<float>>(long_rows_case{}, seed)) < 3e-5);
    CHECK(difference(expected, run<ms::emulated_cuda<ms::bf16>>(long_rows_case{}, seed)) < 3e-5);
  }
}

TEST_CASE("many experts, and one of more rows than a tile") {
  const auto expected = run<ms::reference<double>>(crowded_case{}, 1);
  for (int order = 0; order < orders; ++order) {
    CAPTURE(order);
    const emulated e({.order = order});
    CHECK(difference(expected, run<ms::emulated_cuda<float>>(crowded_case{}, 1)) < 3e-5);
    const auto got = run<ms::emulated_cuda<ms::bf16>>(crowded_case{}, 1);
    CHECK(difference(expected[0], got[0]) < 3e-6);  // the first product's factors are what they are
    CHECK(difference(expected, got) < 5e-2);        // then activations are rounded, once or twice
  }
}

TEST_CASE("attention on tensor cores differs by the rounding of what goes into its second products") {
  for (const long_attend_case c : {long_attend_case{false}, long_attend_case{true}, long_attend_case{false, true}})
    for (int order = 0; order < orders; ++order) {
      CAPTURE(c.many);
      CAPTURE(c.steep);
      CAPTURE(order);
      const auto seed = std::uint64_t(order) + 1;
      const auto expected = run<ms::reference<double>>(c, seed);
      const emulated e({.order = order});
      CHECK(difference(expected, run<ms::emulated_cuda<ms::bf16>>(c, seed)) < (c.steep ? 5e-2 : 2e-2));
    }
}

TEST_CASE("a row's bits do not depend on the rows beside it") {
  using B = ms::emulated_cuda<ms::bf16>;
  B b;
  trial<B> t(4);
  const ms::index_t I = 150, O = 9;
  const auto x = t.numbers(16, I), y = t.numbers(16, O), alone = t.numbers(1, O);
  const auto w = t.weights(O, I);
  for (ms::index_t N = 1; N <= 16; ++N) {
    ms::linear(b, y.rows(0, N), x.rows(0, N), w);
    for (ms::index_t n = 0; n < N; ++n) {
      ms::linear(b, alone, x.rows(n, 1), w);
      ms::settle(b);
      for (ms::index_t o = 0; o < O; ++o) CHECK(std::bit_cast<int>(y(n, o)) == std::bit_cast<int>(alone(0, o)));
    }
  }
}

TEST_CASE("from attention to the experts a row's bits depend neither on the rows beside it nor on threads") {
  using R = ms::router::top_k<3>;
  // Three groups of blocks, and more factors than a warp reads at once.
  constexpr int E = 40, K = 3, D = 600, I = 270, all = 16;
  trial<ms::emulated_cuda<ms::bf16>> t(5);
  const auto base = t.numbers(all, D), factors = t.numbers(all, I);
  const auto w = t.weights(D, I), scorers = t.weights(E, D);
  const auto gain = t.weights(D);
  const std::vector<int> zeros(all, 0);
  const ms::expert_set alive = ms::expert_set::first(E);
  /// y, h, logits, gates and choices of rows [first, first + N).
  const auto made = [&]<class B>(B b, int first, int N) {
    const auto scope = t.memory.scope();
    const auto y = t.memory.take<float>(N, D), h = t.memory.take<float>(N, D), logits = t.memory.take<float>(N, E);
    const ms::routing<float> r{t.memory.take<float>(N, E), t.memory.take<int>(N, K), t.memory.take<float>(N, K),
                               t.memory.take<float>(E)};
    const ms::vec<const int> of_rows(zeros.data(), N);
    const ms::routing_call<float> call{.alive = {{&alive, 1}}, .rows = {of_rows, of_rows, of_rows}};
    ms::norm_route(b, h, logits, r, {y, base.rows(first, N), factors.rows(first, N), w}, {gain, scorers, {}}, 1e-5f,
                   R{}, call, 0, t.memory);
    ms::settle(b);
    std::vector<std::vector<int>> bits(static_cast<std::size_t>(N));
    for (int n = 0; n < N; ++n) {
      for (const auto& m : {y, h, logits, r.gate})
        for (const float v : m.row(n)) bits[std::size_t(n)].push_back(std::bit_cast<int>(v));
      for (const int e : r.chosen.row(n)) bits[std::size_t(n)].push_back(e);
    }
    return bits;
  };
  const auto together = made(ms::emulated_cuda<ms::bf16>{}, 0, all);
  for (const int N : {1, 2, 7, 8, 9, 15})
    for (int first = 0; first + N <= all; first += N) {
      const auto apart = made(ms::emulated_cuda<ms::bf16>{}, first, N);
      for (int n = 0; n < N; ++n) CHECK(apart[std::size_t(n)] == together[std::size_t(first + n)]);
    }
  CHECK(made(threads_of<32>{}, 0, all) == together);
  CHECK(made(threads_of<128>{}, 0, all) == together);
  CHECK(made(threads_of<384>{}, 0, all) == together);

  // Weights that come after the product's are asked for before it is made.
  auto& asked = ms::emulation::here().prefetched;
  asked.clear(), made(ms::emulated_cuda<ms::bf16>{}, 0, 1);
  for (int i = 0; i < D; i += 16) {
    CHECK(std::count(asked.begin(), asked.end(), &gain[i]) == 1);
    for (int e = 0; e < E; ++e) CHECK(std::count(asked.begin(), asked.end(), &scorers(e, i)) == 1);
  }
}

TEST_CASE("a product that is due must have the shapes of the stream that it makes") {
  trial<ms::emulated_cuda<float>> t(6);
  constexpr int N = 3, D = 20, I = 7, E = 5, K = 2;
  const ms::routing<float> r{t.numbers(N, E), t.memory.take<int>(N, K), t.numbers(N, K), t.numbers(E)};
  const ms::expert_set alive = ms::expert_set::first(E);
  const std::vector<int> zeros(N, 0);
  const ms::routing_call<float> call{.alive = {{&alive, 1}}, .rows = {list(zeros), list(zeros), list(zeros)}};
  const auto refused = [&](const ms::late_product<float, float>& x, const char* what) {
    CHECK_THROWS_WITH_AS(
        ms::norm_route(t.backend, t.numbers(N, D), t.numbers(N, E), r, x, {t.weights(D), t.weights(E, D), {}}, 1e-5f,
                       ms::router::top_k<K>{}, call, 0, t.memory),
        what, ms::shape_error);
  };
  const auto y = t.numbers(N, D), x = t.numbers(N, I);
  const auto w = t.weights(D, I);
  refused({y, y, x, t.weights(D + 1, I)}, "norm_route: weights of x must be (20, 7), got (21, 7)");
  refused({y, y, t.numbers(N - 1, I), w}, "norm_route: factors of x must be (3, 7), got (2, 7)");
  refused({y, t.numbers(N, D - 1), x, w}, "norm_route: base of x must be (3, 20), got (3, 19)");
}

namespace {

/// Rows of two sequences behind some tokens, several splits of the keys, and a cache.
struct decoded {
  using B = ms::emulated_cuda<ms::bf16>;
  trial<B> t;
  int G = t.between(1, 2), H = G * t.between(1, 5), d = 2 * t.between(1, 40), past = t.between(70, 140);
  ms::attention_shape s{H, G, d, 10000.f, 2.f / std::sqrt(float(d)), {}, 2 * t.between(0, d / 2)};
  two_sequences rows{t.between(1, 4), t.between(1, 4), past};
  ms::mat<float> qkv = t.numbers(ms::index_t(rows.slot.size()), (H + 2 * G) * d);
  ms::qkv_adjustment<ms::bf16> a{t.weights(qkv.cols()), t.weights(H* d), t.weights(d), 1e-5f};
  ms::kv_layer<float> before{t.numbers(2, past + 9, G* d), t.numbers(2, past + 9, G* d)};
  explicit decoded(std::uint64_t seed) : t(seed) {}

  struct result {
    ms::mat<float> out;
    ms::kv_layer<float> kv;
  };
  result fresh() {
    const auto copy = [&](ms::cube<float> of) {
      const auto made = t.memory.take<float>(of.extent(0), of.extent(1), of.extent(2));
      std::copy(of.begin(), of.end(), made.begin());
      return made;
    };
    return {t.numbers(qkv.rows(), H * d), {copy(before.keys), copy(before.values)}};
  }
  static bool same_bits(const result& a, const result& b) {
    const auto same = [](const auto& x, const auto& y) {
      return std::equal(x.begin(), x.end(), y.begin(), y.end(),
                        [](float p, float q) { return std::bit_cast<int>(p) == std::bit_cast<int>(q); });
    };
    return same(a.out, b.out) && same(a.kv.keys, b.kv.keys) && same(a.kv.values, b.kv.values);
  }
  /// `count` rows from n on in one call.
  void run(const result& r, ms::index_t n, ms::index_t count) {
    ms::append_attend(t.backend, r.out.rows(n, count), qkv.rows(n, count), r.kv, rows.rows().rows(n, count), a, s,
                      t.memory);
    ms::settle(t.backend);
  }
};

}  // namespace

TEST_CASE("rows that see each other in one call have the bits of calls of their own") {
  for (std::uint64_t seed = 1; seed <= 3; ++seed) {
    CAPTURE(seed);
    decoded c(seed);
    const emulated e({.order = int(seed % 3)});
    const auto together = c.fresh(), alone = c.fresh(), apart = c.fresh();
    const ms::index_t N = c.qkv.rows(), half = N / 2;
    c.run(together, 0, N);
    for (ms::index_t n = 0; n < N; ++n) c.run(alone, n, 1);
    c.run(apart, 0, half), c.run(apart, half, N - half);
    CHECK(decoded::same_bits(together, alone));
    CHECK(decoded::same_bits(together, apart));
  }
}

TEST_CASE("bits of attention depend on no number of threads or blocks, nor on their order") {
  using phase = ms::phase::append_attend<ms::bf16>;
  for (std::uint64_t seed = 1; seed <= 2; ++seed) {
    decoded c(seed);
    const ms::index_t N = c.qkv.rows();
    const auto usual = c.fresh();
    c.run(usual, 0, N);
    int splits = 0;
    for (const int position : c.rows.position) splits = std::max(splits, ms::phase::key_splits(position + 1).count);
    REQUIRE(splits > 1);
    const auto parts = c.t.memory.take<float>(N * c.H * splits, c.d + 2);
    const auto finished = c.t.memory.take_zeroed<int>(N * c.G);
    const ms::index_t items = N * c.G * splits;
    const ms::vec<const double> frequency = ms::detail::rope_frequencies(c.s);
    int order = int(seed);
    const ms::index_t shared = phase::shared(N, c.s);
    for (const ms::launch_shape& shape : {ms::launch_shape{items + 3, 32, shared},
                                          {items / 2 + 1, 64, shared},
                                          {1, 128, shared},
                                          {items / 3 + 1, 256, shared},
                                          {items, 512, shared}}) {
      CAPTURE(seed);
      CAPTURE(shape.threads);
      const emulated e({.order = order++ % 3});
      const auto got = c.fresh();
      const phase p{got.out, c.qkv, got.kv, c.a, c.rows.rows(), frequency, c.s, splits, parts, finished.data()};
      ms::detail::device_call<ms::append_attend_t, decoded::B>::launch(shape, p);
      ms::settle(c.t.backend);
      CHECK(decoded::same_bits(got, usual));
    }
  }
}

TEST_CASE("keys are cut by a row's position alone, into few splits, and a block's memory stays under 48 KiB") {
  for (const int keys : {1, 64, 65, 512, 2048, 2049, 5000, 131072}) {
    CAPTURE(keys);
    const ms::phase::key_splits cut(keys);
    CHECK(cut.count <= 32);
    CHECK(cut.count * cut.length >= keys);
    CHECK((cut.count - 1) * cut.length < keys);
    CHECK(cut.length % 64 == 0);
  }
  for (int d = 2; d <= 256; d += 2)
    for (const int group : {1, 2, 3, 8, 64}) {
      const ms::attention_shape s{group, 1, d};
      CHECK(ms::phase::append_attend<float>::shared(16, s) * 4 <= 48 * 1024);
    }
  const append_attend_case beyond{true, 2100};  // splits of two times 64 keys
  const auto expected = run<ms::reference<double>>(beyond, 3);
  CHECK(difference(expected, run<ms::emulated_cuda<float>>(beyond, 3)) < 3e-5);
}

TEST_CASE("what a device could not do is an error of the emulator") {
  using B = ms::emulated_cuda<float>;
  B b;
  using call = ms::detail::device_call<ms::linear_t, B>;
  call::launch({1, 64, 0}, divergent{});
  CHECK_THROWS_WITH_AS(ms::settle(b),
                       "the threads of a block of divergent wait at different barriers, or some have ended", ms::error);
  std::vector<float> heap(6);
  ms::arena memory;
  const auto seen = memory.take<float>(6);
  CHECK_THROWS_AS(ms::accumulate(b, seen, ms::vec<const float>(heap.data(), 6)), ms::error);

  seen[0] = 1;
  ms::accumulate(b, seen, seen);
  CHECK(seen[0] == 1);  // nothing is done yet
  ms::settle(b);
  CHECK(seen[0] == 2);
}

TEST_CASE("the CUDA backend has phases for every op that no others make up, and falls back to nothing") {
  CHECK(ms::fallbacks<ms::emulated_cuda<>>() == "");
  std::string missing;
  [&]<class... Ops>(ms::op_list<Ops...>) {
    ((ms::runs_on<Ops, ms::emulated_cuda<>> ? void() : void(missing += ms::text(Ops::name, " "))), ...);
  }(ms::all_ops{});
  CHECK(missing == "norm_linear_backward ");
  [&]<class... Ops>(ms::op_list<Ops...>) { CHECK((ms::runs_on<Ops, ms::emulated_cuda<>> && ...)); }(ms::loop_ops{});
}
