// The CPU kernels: SIMD adapter, matvec (decode) and gemm (prefill, training), against double-precision plain
// loops, and the promise that bits do not depend on how a product is cut into calls.
// ctest: optimised
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include <doctest/doctest.h>

#include "moeskip/backend/cpu/gemm.hpp"
#include "moeskip/backend/cpu/matvec.hpp"
#include "moeskip/backend/cpu/simd.hpp"

namespace {

namespace ms = moeskip;
namespace simd = moeskip::simd;
namespace kernels = moeskip::cpu_kernels;
using moeskip::bf16;
using moeskip::index_t;
using A = simd::native_arch;
using Q = simd::quad_arch<A>;
constexpr index_t N = simd::width<A>;

std::mt19937 random_bits(20261123);

float draw() { return std::uniform_real_distribution<float>(-1.0f, 1.0f)(random_bits); }
index_t draw(index_t low, index_t high) { return std::uniform_int_distribution<index_t>(low, high)(random_bits); }

template <class T = float> std::vector<T> random_vector(index_t n) {
  std::vector<T> v(static_cast<std::size_t>(n));
  for (T& x : v) x = T(draw());
  return v;
}

bool same_bits(float a, float b) { return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b); }
bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](float x, float y) { return same_bits(x, y); });
}

// Rounding errors of these sums stay under 1e-7 of the sum of magnitudes; one wrong term of a few hundred is
// far above.
bool close(float got, double want, double magnitude) { return std::abs(got - want) <= 1e-6 * magnitude + 1e-30; }

}  // namespace

TEST_CASE("simd: sums of lanes add halves, alone and four at a time") {
  for (int repeat = 0; repeat < 20; ++repeat) {
    float want[4];
    simd::lanes<A> x[4];
    for (int i = 0; i < 4; ++i) {
      std::vector<float> v = random_vector(N);
      x[i] = simd::load<A>(v.data());
      for (index_t half = N / 2; half > 0; half /= 2)
        for (index_t j = 0; j < half; ++j) v[j] += v[j + half];
      want[i] = v[0];
      CHECK(same_bits(simd::reduce_add(x[i]), want[i]));
    }
    float got[4];
    simd::store(got, simd::reduce_add(x[0], x[1], x[2], x[3]));
    for (int i = 0; i < 4; ++i) CHECK(same_bits(got[i], want[i]));
  }
}

TEST_CASE("simd: parts of vectors touch nothing else") {
  for (index_t n = 0; n < N; ++n) {
    const std::vector<float> from = random_vector(n);
    std::vector<float> to(static_cast<std::size_t>(n));  // exact sizes, for the address sanitizer
    const auto x = simd::load_part<A>(from.data(), n);
    simd::store_part(to.data(), x, n);
    CHECK(same_bits(from, to));
    float all[N];
    simd::store(all, x);
    for (index_t i = n; i < N; ++i) CHECK(all[i] == 0.0f);
  }
}

TEST_CASE("simd: bf16 widens exactly, shuffles of quads move every element") {
  std::vector<bf16> v(2 * N + 1);
  for (std::uint32_t start = 0; start < 0x10000; start += 2 * N) {  // every bf16, NaNs included
    for (index_t i = 0; i < 2 * N; ++i) v[i + 1].bits = static_cast<std::uint16_t>(start + i);
    float even[N], odd[N];
    const auto words = simd::load_words<A>(v.data() + 1);
    simd::store(even, simd::even(words)), simd::store(odd, simd::odd(words));
    bool right = true;
    for (index_t i = 0; i < N; ++i)
      right = right && std::bit_cast<std::uint32_t>(even[i]) == std::uint32_t{v[2 * i + 1].bits} << 16 &&
              std::bit_cast<std::uint32_t>(odd[i]) == std::uint32_t{v[2 * i + 2].bits} << 16;
    CHECK(right);
  }

  float m[4][4], t[4][4];
  for (int i = 0; i < 16; ++i) m[i / 4][i % 4] = float(i);
  auto a = simd::load<Q>(m[0]), b = simd::load<Q>(m[1]), c = simd::load<Q>(m[2]), d = simd::load<Q>(m[3]);
  auto low = a, high = b;
  simd::transpose(a, b, c, d);
  simd::store(t[0], a), simd::store(t[1], b), simd::store(t[2], c), simd::store(t[3], d);
  for (int i = 0; i < 16; ++i) CHECK(t[i / 4][i % 4] == m[i % 4][i / 4]);

  simd::deinterleave(low, high);
  simd::store(t[0], low), simd::store(t[1], high);
  for (int i = 0; i < 4; ++i) {
    CHECK(t[0][i] == 2 * i);
    CHECK(t[1][i] == 2 * i + 1);
  }
  simd::interleave(low, high);
  simd::store(t[0], low), simd::store(t[1], high);
  for (int i = 0; i < 8; ++i) CHECK(t[i / 4][i % 4] == i);
}

TEST_CASE("simd: functions agree with the standard library") {
  for (float start = -20.0f; start < 20.0f; start += 0.37f) {
    float x[N], y[N];
    for (index_t i = 0; i < N; ++i) x[i] = start + 0.011f * float(i);
    const auto v = simd::load<A>(x);
    const auto check = [&](simd::lanes<A> got, auto want) {
      simd::store(y, got);
      for (index_t i = 0; i < N; ++i) CHECK(y[i] == doctest::Approx(want(double{x[i]})).epsilon(2e-6));
    };
    check(simd::exp(v), [](double u) { return std::exp(u); });
    check(simd::sigmoid(v), [](double u) { return 1 / (1 + std::exp(-u)); });
    check(simd::silu(v), [](double u) { return u / (1 + std::exp(-u)); });
    check(simd::sqrt(v * v), [](double u) { return std::abs(u); });
    check(simd::max(v, simd::zero<A>()), [](double u) { return std::max(u, 0.0); });
    check(simd::fma(v, v, v), [](double u) { return u * u + u; });
    CHECK(simd::reduce_max(v) == x[N - 1]);
  }
}

namespace {

/// Weights stored as W, products of P.
template <class W, class P> struct products {
  using weight = W;
  using input = kernels::packed_input<W, P>;
};
using wide = products<float, float>;
using widened = products<bf16, float>;
using narrow = products<bf16, bf16>;

// The product of one call, without residual or with.
template <class X = float, class W>
std::vector<float> call_matvec(const float* x, index_t ldx, const W* w, index_t tokens, index_t in, index_t rows,
                               const std::vector<index_t>& cuts, const float* residual = nullptr) {
  std::vector<X> packed(static_cast<std::size_t>(kernels::packed_size<W, A>(tokens, in)));
  kernels::pack_tokens<W, A>(packed.data(), x, ldx, tokens, in);
  std::vector<float> y(static_cast<std::size_t>(tokens * rows), std::numeric_limits<float>::quiet_NaN());
  const kernels::matvec_args<W> args{y.data(), rows, w, in, tokens, residual, rows};
  for (std::size_t i = 0; i + 1 < cuts.size(); ++i) kernels::matvec<A>(args, packed.data(), cuts[i], cuts[i + 1]);
  return y;
}

}  // namespace

TEST_CASE_TEMPLATE("matvec: right, and the same bits for any number of tokens and any split of rows", Products, wide,
                   widened, narrow) {
  using W = typename Products::weight;
  using X = typename Products::input;
  constexpr index_t most = kernels::max_matvec_tokens;
  std::vector<index_t> sizes;
  for (index_t in = 1; in <= 140; ++in) sizes.push_back(in);
  for (index_t in : {160, 191, 192, 193, 200, 512, 515, 1024, 4100}) sizes.push_back(in);
  for (const index_t in : sizes) {
    CAPTURE(in);
    const index_t rows = draw(1, 30), ldx = in + draw(0, 3);
    const std::vector<W> stored = random_vector<W>(rows * in + 1);
    const W* w = stored.data() + 1;  // unaligned, and nothing readable behind
    const std::vector<float> x = random_vector(most * ldx), residual = random_vector(most * rows);

    const std::vector<float> plain = call_matvec<X>(x.data(), ldx, w, most, in, rows, {0, rows});
    for (index_t t = 0; t < most; ++t)
      for (index_t o = 0; o < rows; ++o) {
        double want = 0, magnitude = 0;
        for (index_t i = 0; i < in; ++i) {
          const double term = double{static_cast<float>(X(x[t * ldx + i]))} * double{static_cast<float>(w[o * in + i])};
          want += term, magnitude += std::abs(term);
        }
        REQUIRE(close(plain[t * rows + o], want, magnitude));
      }

    std::vector<float> added = plain;  // the residual is one more addition, after the sum
    for (std::size_t i = 0; i < added.size(); ++i) added[i] = residual[i] + plain[i];
    REQUIRE(same_bits(call_matvec<X>(x.data(), ldx, w, most, in, rows, {0, rows}, residual.data()), added));

    for (index_t tokens = 1; tokens <= most; ++tokens) {  // some tokens, rows cut in three
      const index_t first = draw(0, most - tokens);
      std::vector<index_t> cuts{0, draw(0, rows), draw(0, rows), rows};
      std::sort(cuts.begin(), cuts.end());
      const auto y = call_matvec<X>(x.data() + first * ldx, ldx, w, tokens, in, rows, cuts);
      CAPTURE(tokens);
      REQUIRE(same_bits(y, {plain.begin() + first * rows, plain.begin() + (first + tokens) * rows}));
    }
  }
}

TEST_CASE_TEMPLATE("matvec: every split of the rows", Products, wide, widened, narrow) {
  using W = typename Products::weight;
  using X = typename Products::input;
  const index_t in = 3 * N + 5, rows = 37;
  const std::vector<W> w = random_vector<W>(rows * in);
  for (const index_t tokens : {1, 2, 3, 4, 9}) {
    const std::vector<float> x = random_vector(tokens * in);
    const auto whole = call_matvec<X>(x.data(), in, w.data(), tokens, in, rows, {0, rows});
    for (index_t cut = 0; cut <= rows; ++cut)
      REQUIRE(same_bits(call_matvec<X>(x.data(), in, w.data(), tokens, in, rows, {0, cut, rows}), whole));
  }
}

TEST_CASE("matvec: leading strides, residual in place, and what it refuses") {
  const index_t in = 70, rows = 11, tokens = 3, ldy = 14;
  const std::vector<float> w = random_vector(rows * in), x = random_vector(tokens * in);
  const auto want = call_matvec(x.data(), in, w.data(), tokens, in, rows, {0, rows});
  std::vector<float> packed(static_cast<std::size_t>(kernels::packed_size<float, A>(tokens, in)));
  kernels::pack_tokens<float, A>(packed.data(), x.data(), in, tokens, in);
  std::vector<float> y = random_vector(tokens * ldy);
  const std::vector<float> before = y;
  kernels::matvec_args<float> args{y.data(), ldy, w.data(), in, tokens, y.data(), ldy};
  kernels::matvec<A>(args, packed.data(), 2, 9);
  for (index_t t = 0; t < tokens; ++t)
    for (index_t o = 0; o < ldy; ++o) {
      const float old = before[t * ldy + o];
      CHECK(same_bits(y[t * ldy + o], o >= 2 && o < 9 ? old + want[t * rows + o] : old));
    }
  args.tokens = 17;
  CHECK_THROWS_WITH_AS(kernels::matvec<A>(args, packed.data(), 0, rows),
                       "matvec: expected 1 to 16 tokens and at least 1 input, got 17 and 70", ms::shape_error);
}

namespace {

// One random product: sizes, factors, lists, what happens to C; and C as it should be.
template <class TA, class TB, class P> struct product_case {
  index_t m, n, k, stride_c;
  bool at, bt;
  std::vector<TA> a;
  std::vector<TB> b;
  std::vector<std::int32_t> rows_a;
  std::vector<float> c;
  kernels::factor<TA> A_;
  kernels::factor<TB> B_;
  kernels::product C_;

  product_case(index_t m_, index_t n_, index_t k_, bool at_, bool bt_) : m(m_), n(n_), k(k_), at(at_), bt(bt_) {
    const index_t stride_a = (at ? m : k) + draw(0, 5), stride_b = (bt ? k : n) + draw(0, 5);
    const index_t count_a = at ? k : m, stored_a = count_a + 3, stored_b = bt ? n : k;
    a = random_vector<TA>(stored_a * stride_a), b = random_vector<TB>(stored_b * stride_b);
    A_ = {a.data(), stride_a, at}, B_ = {b.data(), stride_b, bt};
    if (draw(0, 2) == 0) {  // gather
      for (index_t i = 0; i < count_a; ++i) rows_a.push_back(static_cast<std::int32_t>(draw(0, stored_a - 1)));
      A_.rows = rows_a.data();
    }
    stride_c = n + draw(0, 5);
    c = random_vector((m + 2) * stride_c);
    C_ = {c.data(), stride_c, draw(0, 1) == 1, draw(0, 1) ? 1.0f : draw()};
  }

  double at_a(index_t i, index_t j) const {  // A(m, k), whatever its storage
    const index_t r = at ? j : i, s = at ? i : j;
    return P(static_cast<float>(a[(rows_a.empty() ? r : rows_a[r]) * A_.stride + s]));
  }
  double at_b(index_t i, index_t j) const { return P(static_cast<float>(b[(bt ? j : i) * B_.stride + (bt ? i : j)])); }
};

template <class P, class TA, class TB> void check_product(index_t m, index_t n, index_t k, bool at, bool bt) {
  product_case<TA, TB, P> p(m, n, k, at, bt);
  CAPTURE(m);
  CAPTURE(n);
  CAPTURE(k);
  CAPTURE(at);
  CAPTURE(bt);
  const std::vector<float> before = p.c;
  kernels::gemm<A, P>(p.C_, p.A_, p.B_, {0, m, 0, n}, k);
  const std::vector<float> whole = p.c;

  std::vector<float> untouched = whole;
  for (index_t i = 0; i < m; ++i)
    for (index_t j = 0; j < n; ++j) {
      double sum = 0, magnitude = 0;
      for (index_t q = 0; q < k; ++q) {
        const double term = p.at_a(i, q) * p.at_b(q, j);
        sum += term, magnitude += std::abs(term);
      }
      const index_t at_c = i * p.stride_c + j;
      const double factor = double{p.C_.alpha};
      const double old = p.C_.accumulate ? double{before[at_c]} : 0.0;
      REQUIRE(close(whole[at_c], old + factor * sum, std::abs(old) + std::abs(factor) * magnitude));
      untouched[at_c] = before[at_c];
    }
  REQUIRE(same_bits(untouched, before));  // nothing beside the product has changed

  // C cut in four gives the same bits.
  p.c = before;
  const index_t middle_m = draw(0, m), middle_n = draw(0, n);
  for (const auto& part : {kernels::part{0, middle_m, 0, middle_n}, kernels::part{middle_m, m, 0, middle_n},
                           kernels::part{0, middle_m, middle_n, n}, kernels::part{middle_m, m, middle_n, n}})
    kernels::gemm<A, P>(p.C_, p.A_, p.B_, part, k);
  REQUIRE(same_bits(p.c, whole));
}

template <class TA, class TB, class P = float> void check_products() {
  for (const bool at : {false, true})
    for (const bool bt : {false, true}) {
      for (index_t size = 1; size <= 34; ++size) {  // every remainder of the tiles
        check_product<P, TA, TB>(size, draw(1, 40), draw(1, 40), at, bt);
        check_product<P, TA, TB>(draw(1, 20), size, draw(1, 40), at, bt);
        check_product<P, TA, TB>(draw(1, 20), draw(1, 40), size, at, bt);
      }
      for (int repeat = 0; repeat < 4; ++repeat)  // several blocks in each direction
        check_product<P, TA, TB>(draw(1, 300), draw(1, 200), draw(1, 700), at, bt);
      check_product<P, TA, TB>(5, 1100, 20, at, bt);
      check_product<P, TA, TB>(3, 7, 0, at, bt);
    }
}

}  // namespace

TEST_CASE("gemm: f32 times f32, every transposition, list, factor and remainder") { check_products<float, float>(); }
TEST_CASE("gemm: f32 times bf16") { check_products<float, bf16>(); }
TEST_CASE("gemm: bf16 times f32") { check_products<bf16, float>(); }
TEST_CASE("gemm: bf16 times bf16") { check_products<bf16, bf16>(); }
TEST_CASE("gemm: products in bf16, of f32 and of bf16") {
  check_products<float, float, bf16>();
  check_products<float, bf16, bf16>();
  check_products<bf16, float, bf16>();
  check_products<bf16, bf16, bf16>();
}

TEST_CASE("gemm: parts that are empty, and infinities that stay in their row") {
  std::vector<float> a = random_vector(17 * 9), b = random_vector(9 * 33), c(17 * 33, 5.0f);
  a[3 * 9 + 4] = std::numeric_limits<float>::infinity();
  const kernels::product out{c.data(), 33};
  kernels::gemm<A>(out, kernels::factor<float>{a.data(), 9}, kernels::factor<float>{b.data(), 33}, {4, 4, 0, 33}, 9);
  CHECK(std::all_of(c.begin(), c.end(), [](float x) { return x == 5.0f; }));
  kernels::gemm<A>(out, kernels::factor<float>{a.data(), 9}, kernels::factor<float>{b.data(), 33}, {0, 17, 0, 33}, 9);
  for (index_t i = 0; i < 17 * 33; ++i) CHECK(std::isfinite(c[i]) == (i / 33 != 3));
}
