// The low-rank exit head: it starts as the shared one, decodes without loss, is saved, and learns on every backend.
#include <doctest/doctest.h>

#include <cstring>
#include <filesystem>
#include <map>

#include "moeskip/model/checkpoint.hpp"
#include "tiny.hpp"

using namespace tests;

namespace {

struct shared : ms::variant {};
struct corrected : ms::variant {
  using exit_head = ms::exit_head::low_rank;
};
constexpr ms::config<corrected> shape{.sizes = tiny_sizes, .exits = ms::exits_after(1, 2, 3), .exit_head = {.rank = 5}};

/// Weights that would otherwise be zero get random ones.
template <class M> void fill_zeros(M& m) {
  for (const ms::tensor_info& t : m.tensors())
    if (t.start == ms::initial::zeros)
      for (ms::index_t i = 0; i < t.size; ++i)
        m.block()[t.offset + i] = typename M::W(0.5f * float(random_number(8, std::uint64_t(t.offset + i))));
}

template <class M> std::vector<double> head_logits(M& m, const std::vector<double>& x, int rows, int exit_layer) {
  using T = typename M::T;
  ms::arena memory;
  const int D = m.sizes().dim, V = m.sizes().vocab;
  ms::mat<T> in = memory.take<T>(rows, D), normed = memory.take<T>(rows, D), logits = memory.take<T>(rows, V);
  for (ms::index_t i = 0; i < in.size(); ++i) in.data()[i] = T(x[std::size_t(i)]);
  m.head(logits, normed, in, exit_layer);
  return {logits.begin(), logits.end()};
}

}  // namespace

TEST_CASE("a low-rank head starts as the shared one") {
  ms::model<corrected, ms::cpu<float>> m(shape, ms::seed{3});
  ms::model<shared, ms::cpu<float>> plain({.sizes = tiny_sizes, .exits = shape.exits}, ms::seed{3});
  REQUIRE(std::equal(plain.block().begin(), plain.block().end(), m.block().begin()));
  const std::vector<double> x = random_values<double>(40 * 12, 4);
  for (const int e : {1, 2, 3, 4}) CHECK(head_logits(m, x, 40, e) == head_logits(plain, x, 40, e));
  fill_zeros(m);
  for (const int e : {1, 2, 3}) CHECK(head_logits(m, x, 40, e) != head_logits(plain, x, 40, e));
  CHECK(head_logits(m, x, 40, 4) == head_logits(plain, x, 40, 4));
}

TEST_CASE("a low-rank head against its formula") {
  ms::model<corrected, ms::reference<double>> m(shape, ms::seed{3});
  fill_zeros(m);
  const std::vector<double> x = random_values<double>(2 * 12, 4), got = head_logits(m, x, 2, 2);
  const auto w = m.weights().head(2);
  for (int n = 0; n < 2; ++n) {
    double square = 0, h[12], sum[12], middle[5] = {};
    for (int i = 0; i < 12; ++i) square += x[n * 12 + i] * x[n * 12 + i];
    for (int i = 0; i < 12; ++i) h[i] = x[n * 12 + i] * w.norm[i] / std::sqrt(square / 12 + double(1e-5f));
    for (int r = 0; r < 5; ++r)
      for (int i = 0; i < 12; ++i) middle[r] += w.down(r, i) * h[i];
    for (int i = 0; i < 12; ++i) {
      sum[i] = h[i];
      for (int r = 0; r < 5; ++r) sum[i] += w.up(i, r) * middle[r];
    }
    for (int v = 0; v < 17; ++v) {
      double want = 0;
      for (int i = 0; i < 12; ++i) want += w.projection(v, i) * sum[i];
      CHECK(got[std::size_t(n * 17 + v)] == doctest::Approx(want).epsilon(1e-12));
    }
  }
}

TEST_CASE_TEMPLATE("low-rank heads: a row's bits do not depend on the rows beside it", W, float, ms::bf16) {
  ms::config<corrected> c = shape;
  c.sizes.dim = 133, c.sizes.vocab = 301, c.exit_head.rank = 37;
  ms::model<corrected, ms::cpu<W>> m(c, ms::seed{3});
  fill_zeros(m);
  const std::vector<double> x = random_values<double>(16 * 133, 4), all = head_logits(m, x, 16, 2);
  for (int n = 0; n < 16; ++n) {
    const std::vector<double> one = head_logits(m, {x.begin() + n * 133, x.begin() + (n + 1) * 133}, 1, 2);
    CHECK(std::equal(one.begin(), one.end(), all.begin() + n * 301));
  }
}

TEST_CASE_TEMPLATE("low-rank heads: greedy self-speculation and early exit", B, ms::reference<float>, ms::cpu<float>,
                   ms::cpu<ms::bf16>) {
  ms::model<corrected, B> m(shape, ms::seed{5});
  fill_zeros(m);
  const std::vector<int> prompt = random_tokens(7, 17, 6);
  const ms::generation options{.max_new_tokens = 20};
  const auto ignore = [](const ms::emitted&) {};
  const auto plain = ms::generate(m, prompt, options, ms::decoder::autoregressive{}, ignore);
  CHECK(plain.tokens.size() == 20);
  for (const int exit_layer : {1, 2, 3}) {
    const fixed_length decoder{.draft = {.exit_layer = exit_layer}, .length = {.num_speculations = 4}};
    CHECK(ms::generate(m, prompt, options, decoder, ignore).ids() == plain.ids());
  }
  const auto early = ms::generate(m, prompt, options, ms::decoder::early_exit<>{.rule = {.threshold = 0.01f}}, ignore);
  CHECK(early.tokens.size() == 20);
}

TEST_CASE("low-rank heads: gradients on the CPU are those of the reference") {
  const auto gradient = []<class B>(B) {
    using T = ms::scalar_t<B>;
    ms::model<corrected, B> m(shape, ms::seed{3});
    fill_zeros(m);
    const std::vector<int> inputs = random_tokens(60, 17, 1), targets = random_tokens(60, 17, 2);
    ms::buffer<T> block(m.block().size());
    ms::model_weights<corrected, T> grads;
    ms::bind_weights<corrected, T>(shape, grads, block.data());
    ms::arena memory;
    ms::loss_and_gradient(m, ms::batch{{inputs.data(), 60}, {targets.data(), 60}, 3, 20},
                          ms::layerskip_weights(shape.exits, 4, 0.7), grads, ms::seed{5}, 9, memory);
    return std::vector<double>(block.view().begin(), block.view().end());
  };
  const auto want = gradient(ms::reference<double>{}), got = gradient(ms::cpu<float>{});
  const ms::model<corrected, ms::cpu<float>> m(shape);
  for (const ms::tensor_info& t : m.tensors()) {
    double error = 0, square = 0;
    for (std::size_t i = std::size_t(t.offset); i < std::size_t(t.offset + t.size); ++i)
      error += std::pow(got[i] - want[i], 2), square += want[i] * want[i];
    CAPTURE(t.name);
    CHECK(error <= 1e-9 * square + 1e-20);
  }
}

TEST_CASE("low-rank heads are saved and loaded, rank and all") {
  const auto path =
      std::filesystem::temp_directory_path() / ms::text("moeskip-heads-", int(::getpid()), ".safetensors");
  ms::model<corrected, ms::cpu<float>> m(shape, ms::seed{3});
  fill_zeros(m);
  ms::save(m, path);
  const auto again = ms::load<corrected, ms::cpu<float>>(path);
  std::filesystem::remove(path);
  CHECK(again.configuration() == m.configuration());
  CHECK(std::equal(m.block().begin(), m.block().end(), again.block().begin()));
}

TEST_CASE("ranks that do not fit are refused") {
  for (const int rank : {0, -1, 13, 18, 1 << 20}) {
    ms::config<corrected> c = shape;
    c.exit_head.rank = rank;
    CHECK_THROWS_WITH_AS((ms::model<corrected, ms::cpu<float>>(c)), doctest::Contains("exit_head.rank"),
                         ms::config_error);
  }
}

TEST_CASE("tensors say what they are") {
  struct own : ms::variant {
    using exit_head = ms::exit_head::own;
  };
  std::map<ms::tensor_kind, int> count;
  const ms::model<own, ms::cpu<float>> m({.sizes = tiny_sizes, .exits = ms::exits_after(2)});
  for (const ms::tensor_info& t : m.tensors()) {
    ++count[t.kind];
    CAPTURE(t.name);
    CHECK(ms::decays(t.kind) == (t.shape.size() > 1));
    CHECK((t.kind == ms::tensor_kind::norm) == t.name.ends_with("norm.weight"));
  }
  CHECK(count[ms::tensor_kind::norm] == 2 * 4 + 2);
  CHECK(count[ms::tensor_kind::embedding] == 1);
  CHECK(count[ms::tensor_kind::head] == 2);
  CHECK(count[ms::tensor_kind::matrix] == 4 * 4 + 2 * (1 + 3 * 5) + 2 * 3);
}
