// The parts that real architectures brought: gradients of whole models by complex steps, and the CPU's kernels against
// the plain loops.
// ctest: arithmetic
#include "model_gradients.hpp"
#include "moeskip/train/optimizer/only_exits.hpp"

using namespace tests;

namespace {

struct biased : ms::variant {
  using projection = ms::projection::biased;
};
struct normed_heads : ms::variant {
  using projection = ms::projection::normed_heads;
  using after_moe = ms::after_moe::dense;
};
struct normed_width : ms::variant {
  using projection = ms::projection::normed_width;
};
struct biased_normed_heads : ms::variant {
  using projection = ms::projection::biased_normed_heads;
};
struct low_rank_exits : ms::variant {
  using exit_head = ms::exit_head::low_rank;
};

ms::mat<float> rows_of(std::vector<float>& values, ms::index_t rows, ms::index_t cols) {
  return {values.data(), rows, cols};
}

/// The largest; infinite where a number is NaN.
double difference(const std::vector<float>& a, const std::vector<float>& b) {
  double worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double apart = std::abs(double(a[i]) - double(b[i]));
    worst = std::isnan(apart) ? std::numeric_limits<double>::infinity() : std::max(worst, apart);
    if (std::isinf(worst)) break;
  }
  return worst;
}

}  // namespace

TEST_CASE_TEMPLATE("gradients of projections, stretched rotations and a dense block behind experts", V, biased,
                   normed_heads, normed_width, biased_normed_heads) {
  ms::config<V> c{.sizes = tiny_sizes};
  c.sizes.attention_scale = 0.9f, c.sizes.moe_from = 2, c.sizes.rotary_dim = c.sizes.head_size() / 4 * 2;
  c.sizes.stretch = {.factor = 8.f, .low = 1.f, .high = 4.f, .original = 64};
  CHECK(worst_error<V>(c) < 1e-9);
}

TEST_CASE("stretched rotations: fast ones stay, slow ones are slowed by the factor, between them it is blended") {
  ms::attention_shape s{.heads = 1, .kv_heads = 1, .head_dim = 8, .rope_theta = 10000.f};
  std::vector<double> plain, stretched;
  for (int i = 0; i < 4; ++i) plain.push_back(ms::rope_frequency(i, s));
  s.stretch = {.factor = 8.f, .low = 1.f, .high = 4.f, .original = 128};
  for (int i = 0; i < 4; ++i) stretched.push_back(ms::rope_frequency(i, s));
  CHECK(stretched[0] == plain[0]);  // 20 turns in 128 tokens
  CHECK(stretched[1] < plain[1]);   // 2.04 turns
  CHECK(stretched[1] > plain[1] / 8);
  CHECK(stretched[2] == doctest::Approx(plain[2] / 8).epsilon(1e-14));  // 0.2
  CHECK(stretched[3] == doctest::Approx(plain[3] / 8).epsilon(1e-14));
}

TEST_CASE("only_exits trains the exits' own weights and leaves all others as they are") {
  ms::config<low_rank_exits> c{.sizes = tiny_sizes};
  c.exits = ms::exits_after(2);
  ms::model<low_rank_exits, ms::reference<float>> m(c, ms::seed{3});
  const ms::buffer<float> before = copy_of(m.block());
  const std::vector<int> tokens = random_tokens(200, c.sizes.vocab, 5);
  ms::random_windows batches(tokens, 2, 8, ms::seed{1});
  ms::trainer trainer(m, ms::training<low_rank_exits, ms::only_exits<ms::adamw>>{.steps = 5});
  for (int i = 0; i < 5; ++i) trainer.step(batches);
  ms::index_t moments = 0;
  for (const ms::tensor_info& t : m.tensors()) {
    const bool same =
        std::equal(m.block().begin() + t.offset, m.block().begin() + t.offset + t.size, before.data() + t.offset);
    CHECK_MESSAGE(same == !t.name.starts_with("model.exits."), t.name);
  }
  trainer.optimizer_state().blocks([&](auto, const auto&, const auto& block) { moments += block.size(); });
  CHECK(moments < m.block().size() / 4);
  ms::model<normed_width, ms::reference<float>> none(ms::config<normed_width>{.sizes = tiny_sizes});
  CHECK_THROWS_AS((ms::trainer(none, ms::training<normed_width, ms::only_exits<ms::adamw>>{})), ms::config_error);
}

TEST_CASE("the CPU's kernels for projections and experts of four matrices are the plain loops") {
  ms::cpu<float> cpu;
  ms::reference<float> plain;
  for (const auto& shape : {std::array{1, 1, 37}, {3, 5, 6}, {40, 2, 16}, {17, 3, 1}}) {
    const int rows = shape[0], count = shape[1], width = shape[2];
    const ms::column_groups groups{3, count, width};
    const ms::index_t P = groups.end() + 5;
    const std::size_t size = std::size_t(rows * P);
    const std::vector<float> x = random_values<float>(size, 1), dy = random_values<float>(size, 2);
    std::vector<float> gain = random_values<float>(std::size_t(width), 3),
                       bias = random_values<float>(std::size_t(P), 4);
    const ms::vec<const float> by(gain.data(), width);
    const auto both = [&](const std::vector<float>& start, auto&& op) {
      std::vector<float> a = start, b = start;
      op(cpu, rows_of(a, rows, P)), op(plain, rows_of(b, rows, P));
      CHECK(difference(a, b) < 1e-5);
    };
    std::vector<float> input = x, d[2] = {gain, gain}, db[2] = {bias, bias};
    both(x, [&](auto& b, ms::mat<float> y) { ms::norm_groups(b, y, by, groups, 1e-5f); });
    both(x, [&](auto& b, ms::mat<float> y) { ms::add_bias(b, y, {bias.data(), P}); });
    both(dy, [&, i = 0](auto& b, ms::mat<float> y) mutable {
      ms::norm_groups_backward(b, y, {d[i].data(), width}, rows_of(input, rows, P), by, groups, 1e-5f);
      ms::add_bias_backward(b, {db[i++].data(), P}, y);
    });
    CHECK(difference(d[0], d[1]) < 1e-4);
    CHECK(difference(db[0], db[1]) < 1e-4);
    std::vector<float> products = random_values<float>(3 * size, 5);
    both(x, [&](auto& b, ms::mat<float> act) { ms::gated_swiglu(b, act, rows_of(products, rows, 3 * P)); });
    std::vector<int> at(static_cast<std::size_t>(rows));
    for (int i = 0; i < rows; ++i) at[std::size_t(i)] = rows - 1 - i;
    both(x, [&](auto& b, ms::mat<float> y) {
      ms::add_rows(b, y, rows_of(input, rows, P), {at.data(), rows}, {products.data(), rows});
    });
  }
  CHECK_THROWS_AS(ms::norm_groups(cpu, ms::mat<float>(), ms::vec<const float>(), ms::column_groups{0, 1, 4}, 1e-5f),
                  ms::shape_error);
}
