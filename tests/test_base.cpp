// base/: messages, scalars, shares of work, small math, and the counter-based generator.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <complex>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "moeskip/base/check.hpp"
#include "moeskip/base/math.hpp"
#include "moeskip/base/parallel.hpp"
#include "moeskip/base/rng.hpp"
#include "moeskip/base/scalar.hpp"

namespace ms = moeskip;
using complex = std::complex<double>;

namespace {

constexpr double step = 1e-30;  // of complex-step derivatives: f'(x) = imag f(x + i step) / step

bool close(double a, double b, double relative) { return std::abs(a - b) <= relative * std::abs(b); }

}  // namespace

// --- messages, scalars, shares ----------------------------------------------------------------------------

TEST_CASE("text joins strings and numbers") {
  const char* const pointer = "pointer ";
  CHECK(ms::text("rows ", 3, std::string(", "), pointer, std::string_view("view")) == "rows 3, pointer view");
  CHECK(ms::text(true, " ", false, " ", -7L, " ", 18446744073709551615u, " ", 0.5f, " ", 1e300) ==
        "true false -7 18446744073709551615 0.5 1e+300");
  CHECK(ms::text().empty());
}

TEST_CASE("a failed check throws the named error with the joined message") {
  const int rows = 2;
  CHECK_NOTHROW([&] { MOESKIP_CHECK(ms::shape_error, rows == 2, "not thrown"); }());
  CHECK_THROWS_WITH_AS([&] { MOESKIP_CHECK(ms::shape_error, rows == 3, "expected ", 3, " rows, got ", rows); }(),
                       "expected 3 rows, got 2", ms::shape_error);
}

TEST_CASE("bf16 rounds to nearest, ties to even, and keeps what is not finite") {
  for (std::uint32_t upper = 0; upper < 0x10000; ++upper) {  // every bf16, as a float, comes back
    const float exact = std::bit_cast<float>(upper << 16);
    const ms::bf16 back(exact);
    if (std::isnan(exact)) CHECK(std::isnan(float(back)));
    else if (back.bits != upper) FAIL_CHECK("bf16 ", upper, " came back as ", back.bits);
  }
  const auto rounded = [](std::uint32_t word) { return ms::bf16(std::bit_cast<float>(word)).bits; };
  CHECK(rounded(0x3f807fffu) == 0x3f80);                                  // below the middle
  CHECK(rounded(0x3f808000u) == 0x3f80);                                  // the middle, to even
  CHECK(rounded(0x3f818000u) == 0x3f82);                                  // the middle, to even
  CHECK(rounded(0x3f808001u) == 0x3f81);                                  // above the middle
  CHECK(rounded(0x7f7fffffu) == 0x7f80);                                  // the largest float, to infinity
  CHECK(std::isnan(float(ms::bf16(std::bit_cast<float>(0x7f800001u)))));  // a NaN with only low bits stays one
}

TEST_CASE("shares cover everything once, in whole grains") {
  for (const int n : {0, 1, 7, 64, 1000})
    for (const int threads : {1, 2, 3, 16})
      for (const int grain : {1, 4, 16}) {
        ms::index_t next = 0;
        for (int thread = 0; thread < threads; ++thread) {
          const ms::range mine = ms::share(n, thread, threads, grain);
          CHECK(mine.first == next);
          CHECK(mine.first <= mine.last);
          CHECK((mine.last == n || mine.last % grain == 0));
          next = mine.last;
        }
        CHECK(next == n);
      }
}

// --- math -------------------------------------------------------------------------------------------------

TEST_CASE_TEMPLATE("sigmoid, silu and their derivatives agree with long double", T, float, double) {
  constexpr double tolerance = 8 * static_cast<double>(std::numeric_limits<T>::epsilon());
  for (int i = -800; i <= 800; ++i) {
    const T x = static_cast<T>(i) / 10;
    const long double s = 1 / (1 + std::exp(-static_cast<long double>(x)));
    const long double t = 1 / (1 + std::exp(static_cast<long double>(x)));  // sigmoid(-x), to full precision
    INFO("x = ", x);
    CHECK(close(ms::sigmoid(x), static_cast<double>(s), tolerance));
    CHECK(close(ms::sigmoid_derivative(x), static_cast<double>(s * t), tolerance));
    CHECK(close(ms::silu(x), static_cast<double>(x * s), tolerance));
    // Near its zero (x = -1.2785) the derivative is a difference of numbers near s.
    const double error = std::abs(ms::silu_derivative(x) - static_cast<double>(s * (1 + x * t)));
    CHECK(error <= tolerance * static_cast<double>(s * (1 + std::abs(x) * t)));
  }
}

TEST_CASE_TEMPLATE("far arguments neither overflow nor give NaN", T, float, double) {
  const T far = static_cast<T>(1e30);
  CHECK(ms::sigmoid(far) == 1);
  CHECK(ms::sigmoid(-far) == 0);
  CHECK(ms::silu(far) == far);
  CHECK(ms::silu(-far) == 0);
  CHECK(ms::silu_derivative(far) == 1);
  CHECK(ms::silu_derivative(-far) == 0);
  CHECK(ms::sigmoid_derivative(far) == 0);
  CHECK(ms::sigmoid_derivative(-far) == 0);
}

TEST_CASE("complex steps through sigmoid and silu give their derivatives") {
  for (int i = -300; i <= 300; ++i) {
    const double x = i / 10.0;
    INFO("x = ", x);
    CHECK(close(ms::sigmoid(complex(x, step)).imag() / step, ms::sigmoid_derivative(x), 1e-14));
    CHECK(std::abs(ms::silu(complex(x, step)).imag() / step - ms::silu_derivative(x)) <= 1e-14);
    CHECK(std::abs(ms::silu(complex(x, step)).real() - ms::silu(x)) <= 1e-15 * std::abs(x) + 1e-45);
    // The derivative itself runs on complex numbers too: against a central difference.
    const double second = (ms::silu_derivative(x + 1e-5) - ms::silu_derivative(x - 1e-5)) / 2e-5;
    CHECK(std::abs(ms::silu_derivative(complex(x, step)).imag() / step - second) <= 1e-9);
  }
}

TEST_CASE("log_sum_exp: value, shift, predicate, empty sum") {
  const std::vector<double> x{0.25, -3, 2, 1.5};
  const auto n = static_cast<ms::index_t>(x.size());
  const double plain = std::log(std::exp(0.25) + std::exp(-3.0) + std::exp(2.0) + std::exp(1.5));
  CHECK(close(ms::log_sum_exp(x.data(), n), plain, 1e-15));
  for (const double shift : {1e4, -1e4}) {  // e^10000 overflows
    std::vector<double> shifted = x;
    for (double& value : shifted) value += shift;
    CHECK(close(ms::log_sum_exp(shifted.data(), n), plain + shift, 1e-15));
  }
  const auto odd = [](ms::index_t i) { return i % 2 == 1; };
  CHECK(close(ms::log_sum_exp(x.data(), n, odd), std::log(std::exp(-3.0) + std::exp(1.5)), 1e-15));
  const auto none = [](ms::index_t) { return false; };
  constexpr double infinity = std::numeric_limits<double>::infinity();
  CHECK(ms::log_sum_exp(x.data(), n, none) == -infinity);
  CHECK(ms::log_sum_exp(x.data(), 0) == -infinity);
  const std::vector<double> masked{-infinity, 1, -infinity};
  CHECK(ms::log_sum_exp(masked.data(), 3) == 1);
  const std::vector<float> wide(1000, 80.0f);  // single precision: 1000 e^80 overflows
  CHECK(close(ms::log_sum_exp(wide.data(), 1000), 80 + std::log(1000.0), 1e-6));
}

TEST_CASE("the gradient of log_sum_exp is softmax") {
  const std::vector<double> x{700, 698.5, -20, 701, 699};
  const auto n = static_cast<ms::index_t>(x.size());
  const auto keep = [](ms::index_t i) { return i != 3; };
  std::vector<double> p(x.size());
  ms::softmax(p.data(), x.data(), n, keep);
  for (std::size_t i = 0; i < x.size(); ++i) {
    std::vector<complex> stepped(x.begin(), x.end());
    stepped[i] += complex(0, step);
    CHECK(std::abs(ms::log_sum_exp(stepped.data(), n, keep).imag() / step - p[i]) <= 1e-15);
  }
  CHECK(p[3] == 0);
}

TEST_CASE_TEMPLATE("softmax: proportions, in place, masks", T, float, double) {
  constexpr double tolerance = 8 * static_cast<double>(std::numeric_limits<T>::epsilon());
  constexpr T infinity = std::numeric_limits<T>::infinity();
  std::vector<T> x{1000, 1001, 999, -infinity};
  std::vector<T> p(4);
  ms::softmax(p.data(), x.data(), 4);
  const double sum = std::exp(-1.0) + 1 + std::exp(-2.0);
  CHECK(close(p[0], std::exp(-1.0) / sum, tolerance));
  CHECK(close(p[1], 1 / sum, tolerance));
  CHECK(close(p[2], std::exp(-2.0) / sum, tolerance));
  CHECK(p[3] == 0);
  ms::softmax(x.data(), x.data(), 4);
  CHECK(x == p);

  std::vector<T> y{5, 1, 1, 7};
  ms::softmax(y.data(), y.data(), 4, [](ms::index_t i) { return i == 1 || i == 2; });
  CHECK(y == std::vector<T>{0, T(0.5), T(0.5), 0});
  ms::softmax(y.data(), y.data(), 4, [](ms::index_t) { return false; });
  CHECK(y == std::vector<T>(4, 0));
  std::vector<T> lowest(3, -infinity);
  ms::softmax(lowest.data(), lowest.data(), 3);
  CHECK(lowest == std::vector<T>(3, 0));
}

TEST_CASE("complex steps through softmax give p_i (delta_ij - p_j)") {
  const std::vector<double> x{0.5, -1, 2};
  std::vector<double> p(3);
  ms::softmax(p.data(), x.data(), 3);
  for (std::size_t j = 0; j < 3; ++j) {
    std::vector<complex> q(x.begin(), x.end());
    q[j] += complex(0, step);
    ms::softmax(q.data(), q.data(), 3);
    for (std::size_t i = 0; i < 3; ++i)
      CHECK(std::abs(q[i].imag() / step - p[i] * ((i == j ? 1.0 : 0.0) - p[j])) <= 1e-15);
  }
}

// --- rng --------------------------------------------------------------------------------------------------

// Known answers that are published with the generator (Random123, kat_vectors).
static_assert(ms::philox({{0, 0, 0, 0}}, 0) == ms::philox_block{{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}});
static_assert(ms::philox({{~0u, ~0u, ~0u, ~0u}}, ~std::uint64_t{0}) ==
              ms::philox_block{{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}});
static_assert(ms::philox({{0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}}, 0x299f31d0a4093822u) ==
              ms::philox_block{{0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u}});

// Where the coordinates go in the counter is part of what makes an old run repeatable.
static_assert(ms::draws{ms::seed{42}, ms::stream::expert_dropout}.block(7, 3, 12, 5) ==
              ms::philox({{12, 5u << 8, 7, 2u << 24 | 3u << 8}}, 42));
static_assert(ms::draws{ms::seed{42}, ms::stream::user}.block(0x12'3456'789a, 0xfedc, 0x98'7654'3210, 0xabcdef) ==
              ms::philox({{0x76543210u, 0xabcdef98u, 0x3456789au, 0x07fedc12u}}, 42));

TEST_CASE("the numbers of the purposes are fixed") {
  CHECK(static_cast<int>(ms::stream::weights) == 0);
  CHECK(static_cast<int>(ms::stream::data) == 1);
  CHECK(static_cast<int>(ms::stream::expert_dropout) == 2);
  CHECK(static_cast<int>(ms::stream::layer_dropout) == 3);
  CHECK(static_cast<int>(ms::stream::sampling) == 4);
  CHECK(static_cast<int>(ms::stream::draft) == 5);
  CHECK(static_cast<int>(ms::stream::acceptance) == 6);
  CHECK(static_cast<int>(ms::stream::user) == 7);
}

TEST_CASE("draws at different coordinates or purposes are different, up to the documented limits") {
  // Under one key Philox is a bijection, so equal blocks would mean equal counters.
  const auto corners = [](int bits) {
    const std::uint64_t largest = (std::uint64_t{1} << bits) - 1;
    return std::array<std::uint64_t, 5>{0, 1, 2, largest / 2 + 1, largest};
  };
  std::vector<std::array<std::uint32_t, 4>> blocks;
  for (std::uint32_t purpose = 0; purpose < 8; ++purpose)
    for (const std::uint64_t training_step : corners(40))
      for (const std::uint64_t layer : corners(16))
        for (const std::uint64_t token : corners(40))
          for (const std::uint64_t expert : corners(24)) {
            const ms::draws d{ms::seed{1}, static_cast<ms::stream>(purpose)};
            const ms::philox_block b = d.block(training_step, layer, token, expert);
            blocks.push_back({b.word[0], b.word[1], b.word[2], b.word[3]});
          }
  std::sort(blocks.begin(), blocks.end());
  CHECK(blocks.size() == 5000);
  CHECK(std::adjacent_find(blocks.begin(), blocks.end()) == blocks.end());
}

TEST_CASE("all draws at one place come from the same block, and seeds matter in all their bits") {
  constexpr ms::draws d{ms::seed{7}, ms::stream::sampling};
  constexpr ms::philox_block b = d.block(3, 1, 4, 1);
  CHECK(d.bits(3, 1, 4, 1) == b.word[0]);
  CHECK(d.uniform(3, 1, 4, 1) == static_cast<float>(b.word[0] >> 8) / 16777216.0f);
  const std::uint64_t both = std::uint64_t{b.word[1]} << 32 | b.word[0];
  CHECK(d.uniform_double(3, 1, 4, 1) == static_cast<double>(both >> 11) / 9007199254740992.0);
  for (int bit = 0; bit < 64; ++bit)
    CHECK(ms::draws{ms::seed{7 ^ std::uint64_t{1} << bit}, d.purpose}.bits(3, 1, 4, 1) != b.word[0]);
}

// The generator is deterministic: the statistics below are fixed numbers, the bounds about 5 standard errors.
TEST_CASE("uniform draws fill [0, 1) evenly along every coordinate") {
  constexpr int n = 1 << 16, bins = 256;
  constexpr ms::draws d{ms::seed{2026}, ms::stream::user};
  for (int coordinate = 0; coordinate < 4; ++coordinate) {
    INFO("coordinate ", coordinate);
    std::vector<int> count(bins), count_double(bins);
    double sum = 0, squares = 0, products = 0, previous = 0.5;
    for (std::uint64_t i = 0; i < n; ++i) {
      const std::uint64_t at[4] = {coordinate == 0 ? i : 0, coordinate == 1 ? i : 0, coordinate == 2 ? i : 0,
                                   coordinate == 3 ? i : 0};
      const double u = static_cast<double>(d.uniform(at[0], at[1], at[2], at[3]));
      const double v = d.uniform_double(at[0], at[1], at[2], at[3]);
      REQUIRE((0 <= u && u < 1 && 0 <= v && v < 1));
      ++count[static_cast<std::size_t>(u * bins)];
      ++count_double[static_cast<std::size_t>(v * bins)];
      sum += u;
      squares += u * u;
      products += (u - 0.5) * (previous - 0.5);
      previous = u;
    }
    CHECK(std::abs(sum / n - 0.5) < 5 * 0.2887 / 256);
    CHECK(std::abs(squares / n - 1.0 / 3) < 5 * 0.2981 / 256);
    CHECK(std::abs(products / n) < 5 * (1.0 / 12) / 256);  // neighbours are uncorrelated
    for (const std::vector<int>& c : {count, count_double}) {
      double chi_squared = 0;  // mean 255, standard deviation sqrt(2 * 255)
      for (const int k : c) chi_squared += (k - 256.0) * (k - 256.0) / 256.0;
      CHECK(std::abs(chi_squared - 255) < 5 * 22.6);
    }
  }
}

TEST_CASE("below stays below, reaches everything, favours nothing") {
  constexpr ms::draws d{ms::seed{5}, ms::stream::data};
  std::vector<int> count(7);
  for (std::uint64_t i = 0; i < 70000; ++i) ++count.at(d.below(7, i));
  for (const int k : count) CHECK(std::abs(k - 10000) < 5 * 93);
  for (std::uint64_t i = 0; i < 1000; ++i) {
    CHECK(d.below(1, i) == 0);
    CHECK(d.below(std::uint64_t{1} << 53, i) < std::uint64_t{1} << 53);
    CHECK(d.below((std::uint64_t{1} << 53) - 1, i) < (std::uint64_t{1} << 53) - 1);
  }
}

TEST_CASE("normal draws have the moments of the standard normal distribution") {
  constexpr int n = 1 << 16;
  constexpr ms::draws d{ms::seed{11}, ms::stream::weights};
  double m1 = 0, m2 = 0, m3 = 0, m4 = 0, products = 0, previous = 0;
  int beyond_two = 0;
  for (std::uint64_t i = 0; i < n; ++i) {
    const double x = static_cast<double>(d.normal(0, 0, i));
    REQUIRE(std::abs(x) <= 8.6);
    m1 += x / n, m2 += x * x / n, m3 += x * x * x / n, m4 += x * x * x * x / n;
    products += x * previous / n;
    previous = x;
    beyond_two += std::abs(x) > 2;
  }
  CHECK(std::abs(m1) < 5.0 / 256);
  CHECK(std::abs(m2 - 1) < 5 * std::sqrt(2.0) / 256);
  CHECK(std::abs(m3) < 5 * std::sqrt(15.0) / 256);
  CHECK(std::abs(m4 - 3) < 5 * std::sqrt(96.0) / 256);
  CHECK(std::abs(products) < 5.0 / 256);
  CHECK(std::abs(beyond_two / double(n) - 0.0455) < 5 * 0.2084 / 256);
}
