// Optimizers: Muon and cautious AdamW against plain double-precision loops, averaged weights, resuming.
#include <doctest/doctest.h>

#include <cmath>
#include <filesystem>
#include <map>

#include "moeskip/train/optimizer/only_exits.hpp"
#include "moeskip/train/resume.hpp"
#include "tiny.hpp"

using namespace tests;
namespace fs = std::filesystem;

namespace {

using matrix = std::vector<double>;  // (rows, cols), row-major

/// a (m, k) · b (k, n), either of them transposed as it is stored.
matrix product(const matrix& a, bool ta, const matrix& b, bool tb, int m, int n, int k) {
  matrix c(std::size_t(m * n));
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < n; ++j)
      for (int x = 0; x < k; ++x)
        c[std::size_t(i * n + j)] +=
            a[std::size_t(ta ? x * m + i : i * k + x)] * b[std::size_t(tb ? j * k + x : x * n + j)];
  return c;
}

/// Newton-Schulz as its authors write it: always with the shorter side first.
matrix orthogonal(matrix x, int m, int n) {
  const bool tall = m > n;
  if (tall) {
    matrix t(x.size());
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < n; ++j) t[std::size_t(j * m + i)] = x[std::size_t(i * n + j)];
    x = t, std::swap(m, n);
  }
  double square = 0;
  for (const double v : x) square += v * v;
  for (double& v : x) v /= std::sqrt(square);
  for (int i = 0; i < 5; ++i) {
    const matrix a = product(x, false, x, true, m, m, n), a2 = product(a, false, a, false, m, m, m);
    matrix b(a.size());
    for (std::size_t j = 0; j < a.size(); ++j) b[j] = -4.7750 * a[j] + 2.0315 * a2[j];
    const matrix y = product(b, false, x, false, m, n, m);
    for (std::size_t j = 0; j < x.size(); ++j) x[j] = 3.4445 * x[j] + y[j];
  }
  if (!tall) return x;
  matrix t(x.size());
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < n; ++j) t[std::size_t(j * m + i)] = x[std::size_t(i * n + j)];
  return t;
}

ms::tensor_info tensor(int rows, int cols, ms::tensor_kind kind = ms::tensor_kind::matrix) {
  return {"w", {rows, cols}, 0, ms::index_t(rows) * cols, ms::initial::fan_in, kind};
}

struct plain : ms::variant {};
constexpr ms::config<plain> shape{.sizes = tiny_sizes, .exits = ms::exits_after(2)};

template <class B, class O> struct run {
  std::vector<int> text = random_tokens(1500, 17, 3);
  ms::random_windows data{text, 4, 16, ms::seed{2}};
  ms::model<plain, B> model{shape, ms::seed{1}};
  ms::trainer<plain, B, O> trainer;
  explicit run(O optimizer = {}, double ema = 0)
      : trainer(model, {.steps = 30, .schedule = {.warmup = 3}, .optimizer = optimizer, .ema = ema}) {}
  double to(std::uint64_t step) {
    double loss = 0;
    while (trainer.next_step() < step) loss = double(trainer.step(data).losses.total);
    return loss;
  }
  std::vector<double> weights() { return {trainer.master().begin(), trainer.master().end()}; }
  std::vector<double> average() { return {trainer.average().begin(), trainer.average().end()}; }
  std::vector<double> published() const {
    std::vector<double> all;
    for (const auto w : model.block()) all.push_back(double(float(w)));
    return all;
  }
};

/// AdamW that counts what it is asked for, with neighbours together or one by one.
template <bool Together> struct counting_adamw : ms::adamw {
  static inline int updates = 0;
  template <class B> struct on : ms::adamw::on<B> {
    using ms::adamw::on<B>::on;
    void update(B& b, const ms::adamw& o, const ms::tensor_info& t, ms::vec<float> w, ms::vec<const float> g,
                double rate, std::uint64_t step, double scale) {
      ++updates;
      ms::adamw::on<B>::update(b, o, t, w, g, rate, step, scale);
    }
    using takes_together = on;
    static bool together(const ms::adamw& o, const ms::tensor_info& a, const ms::tensor_info& b) {
      return Together && ms::adamw::on<B>::together(o, a, b);
    }
  };
};

struct exits_and_biases : ms::variant {
  using router = ms::router::biased<ms::router::top_k<2>>;
  using exit_head = ms::exit_head::low_rank;
};

/// The weights after two steps.
template <class O> std::vector<float> two_steps(const O& optimizer) {
  ms::config<exits_and_biases> c{.sizes = tiny_sizes, .exits = ms::exits_after(1, 3)};
  ms::model<exits_and_biases, ms::cpu<float>> m(c, ms::seed{1});
  ms::trainer<exits_and_biases, ms::cpu<float>, O> t(m, {.optimizer = optimizer});
  const std::vector<int> text = random_tokens(500, 17, 3);
  ms::random_windows data(text, 2, 16, ms::seed{2});
  t.step(data), t.step(data);
  return {m.block().begin(), m.block().end()};
}

struct scratch_file {
  fs::path path = fs::temp_directory_path() / ms::text("moeskip-optimizers-", int(::getpid()), ".safetensors");
  ~scratch_file() { fs::remove(path); }
};

}  // namespace

TEST_CASE_TEMPLATE("muon against plain loops", B, ms::reference<double>, ms::cpu<float>, ms::cpu<ms::bf16>) {
  using T = ms::scalar_t<B>;
  constexpr double epsilon = std::is_same_v<T, double> ? 1e-11 : 2e-4;
  B backend;
  for (const auto& extents :
       {std::pair(24, 40), std::pair(40, 24), std::pair(7, 7), std::pair(3, 50), std::pair(1, 9)}) {
    const int m = extents.first, n = extents.second;
    CAPTURE(m);
    CAPTURE(n);
    const ms::muon o{.momentum = 0.8, .weight_decay = 0.3};
    const ms::tensor_info t = tensor(m, n);
    typename ms::muon::on<B> state({t});
    const std::size_t size = std::size_t(t.size);
    std::vector<T> w = random_values<T>(size, 1);
    matrix want(w.begin(), w.end()), past(size);
    for (int step = 1; step <= 3; ++step) {
      const std::vector<T> g = random_values<T>(size, 10 + std::uint64_t(step));
      state.update(backend, o, t, {w.data(), t.size}, {g.data(), t.size}, 0.05, std::uint64_t(step), 0.7);
      matrix u(size);
      for (std::size_t i = 0; i < size; ++i) {
        past[i] = 0.8 * past[i] + 0.7 * double(g[i]);
        u[i] = 0.8 * past[i] + 0.7 * double(g[i]);
      }
      u = orthogonal(u, m, n);
      for (std::size_t i = 0; i < size; ++i)
        want[i] = want[i] * (1 - 0.05 * 0.3) - 0.05 * 0.2 * std::sqrt(double(std::max(m, n))) * u[i];
    }
    double error = 0;
    for (std::size_t i = 0; i < size; ++i) error = std::max(error, std::abs(double(w[i]) - want[i]));
    CHECK(error < epsilon);
  }
}

TEST_CASE("muon's updates are nearly orthogonal, and none for a gradient of zero") {
  ms::cpu<float> backend;
  for (const auto& [m, n] : {std::pair(32, 64), std::pair(64, 32), std::pair(48, 48)}) {
    const ms::index_t size = ms::index_t(m) * n;
    ms::detail::newton_schulz_scratch<float> scratch(size, std::min(m, n));
    std::vector<float> x = random_values<float>(std::size_t(size), 5);
    ms::detail::newton_schulz(backend, {x.data(), m, n}, scratch, 5);
    // Of the smaller Gram matrix, every eigenvalue lies in [0.68², 1.21²] where Newton-Schulz has converged; its
    // diagonal and, by Gershgorin, the rest say so.
    const matrix u(x.begin(), x.end());
    const int side = std::min(m, n);
    const matrix gram = m <= n ? product(u, false, u, true, m, m, n) : product(u, true, u, false, n, n, m);
    double trace = 0, off = 0;
    for (int i = 0; i < side; ++i)
      for (int j = 0; j < side; ++j) {
        const double v = gram[std::size_t(i * side + j)];
        if (i == j) {
          trace += v / side;
          CHECK(v > 0.4);
          CHECK(v < 1.6);
        } else {
          off += v * v / side;
        }
      }
    CHECK(trace == doctest::Approx(0.9).epsilon(0.3));
    if (m != n) CHECK(off < 0.15);  // a square random matrix has singular values near 0
  }
  std::vector<float> zero(12), w(12, 1.f);
  const ms::tensor_info t = tensor(3, 4);
  ms::muon::on<ms::cpu<float>> state({t});
  state.update(backend, {.weight_decay = 0}, t, {w.data(), 12}, {zero.data(), 12}, 0.1, 1, 1);
  CHECK(w == std::vector<float>(12, 1.f));
  // Nor is a matrix moved by what earlier gradients left: it only decays.
  std::vector<float> some = random_values<float>(12, 3);
  state.update(backend, {.weight_decay = 0}, t, {w.data(), 12}, {some.data(), 12}, 0.1, 2, 1);
  const std::vector<float> moved = w;
  CHECK(moved != std::vector<float>(12, 1.f));
  state.update(backend, {.weight_decay = 0}, t, {w.data(), 12}, {zero.data(), 12}, 0.1, 3, 1);
  CHECK(w == moved);
  state.update(backend, {.weight_decay = 0.5}, t, {w.data(), 12}, {zero.data(), 12}, 0.1, 4, 1);
  for (std::size_t i = 0; i < w.size(); ++i) CHECK(w[i] == doctest::Approx(0.95 * moved[i]));
}

TEST_CASE("muon takes every matrix, and AdamW what is none") {
  run<ms::cpu<float>, ms::muon> r;
  std::map<ms::tensor_kind, int> taken, left;
  auto& state = r.trainer.optimizer_state();
  for (const auto& t : state.matrices.tensors) ++taken[t.kind];
  for (const auto& t : state.others.tensors) ++left[t.kind];
  CHECK(taken.size() == 1);
  CHECK(taken[ms::tensor_kind::matrix] == 4 * 4 + 2 * (1 + 3 * 5) + 2 * 3);
  CHECK(left[ms::tensor_kind::embedding] == 1);
  CHECK(left[ms::tensor_kind::head] == 1);
  CHECK(left[ms::tensor_kind::norm] == 9);
  CHECK(left.size() == 3);

  // AdamW's part is AdamW's: after one step, embedding, head and norms are those of a run of AdamW alone.
  run<ms::cpu<float>, ms::adamw> other;
  r.to(1), other.to(1);
  for (const ms::tensor_info& t : r.model.tensors()) {
    CAPTURE(t.name);
    const float* a = r.model.block().data() + t.offset;
    CHECK(std::equal(a, a + t.size, other.model.block().data() + t.offset) == (t.kind != ms::tensor_kind::matrix));
  }
}

TEST_CASE_TEMPLATE("muon learns", B, ms::cpu<float>, ms::cpu<ms::bf16>) {
  run<B, ms::muon> r({.lr = 1e-2});
  for (std::size_t i = 2; i < r.text.size(); ++i) r.text[i] = (r.text[i - 1] * 3 + r.text[i - 2] + 1) % 17;
  const double first = r.to(1), last = r.to(60);
  CHECK(last < 0.5 * first);
}

TEST_CASE_TEMPLATE("resuming Muon and averaged weights gives the bits of never having stopped", B, ms::cpu<float>,
                   ms::cpu<ms::bf16>) {
  const scratch_file file;
  run<B, ms::muon> whole({}, 0.9), first({}, 0.9), second({}, 0.9);
  whole.to(9), first.to(5);
  ms::save(first.trainer, file.path);
  ms::resume(second.trainer, file.path);
  CHECK(second.weights() == first.weights());
  CHECK(second.average() == first.average());
  CHECK(second.average() != second.weights());
  second.to(9);
  CHECK(second.weights() == whole.weights());
  CHECK(second.average() == whole.average());
  run<B, ms::muon> without({}, 0), other({.momentum = 0.9}, 0.9);
  CHECK_THROWS_WITH_AS(ms::resume(without.trainer, file.path), doctest::Contains("training.ema: expected 0, got 0.9"),
                       ms::file_error);
  CHECK_THROWS_WITH_AS(ms::resume(other.trainer, file.path), doctest::Contains("optimizer.momentum"), ms::file_error);
}

TEST_CASE_TEMPLATE("averaged weights follow their recurrence, and are there to evaluate and save", B, ms::cpu<float>,
                   ms::cpu<ms::bf16>) {
  const scratch_file file;
  run<B, ms::adamw> r({.lr = 1e-2}, 0.5), off({.lr = 1e-2});
  std::vector<double> want = r.weights();
  for (std::uint64_t step = 1; step <= 12; ++step) {
    r.to(step);
    const double decay = std::min(0.5, double(step) / double(step + 9));
    const std::vector<double> w = r.weights();
    for (std::size_t i = 0; i < w.size(); ++i) want[i] = decay * want[i] + (1 - decay) * w[i];
  }
  const std::vector<double> average = r.average(), weights = r.weights(), published = r.published();
  double error = 0;
  for (std::size_t i = 0; i < want.size(); ++i) error = std::max(error, std::abs(want[i] - average[i]));
  CHECK(error < 1e-6);
  off.to(12);
  CHECK(off.weights() == weights);  // averaging changes nothing

  {
    const ms::averaged_weights shown(r.trainer);
    CHECK(r.average() == average);
    CHECK(r.weights() == weights);
    std::vector<double> rounded;
    for (const double w : average) rounded.push_back(double(float(ms::weight_t<B>(float(w)))));
    CHECK(r.published() == rounded);
    ms::save(r.model, file.path);
    CHECK_THROWS_WITH_AS(r.trainer.step(r.data), doctest::Contains("averaged weights"), ms::error);
    CHECK_THROWS_WITH_AS(r.trainer.show_average(true), doctest::Contains("already"), ms::error);
  }
  CHECK(r.published() == published);
  CHECK(r.weights() == weights);
  const auto loaded = ms::load<plain, B>(file.path);
  CHECK(double(float(loaded.block()[0])) == double(float(ms::weight_t<B>(float(average[0])))));
  r.to(13), off.to(13);
  CHECK(r.weights() == off.weights());
  CHECK_THROWS_WITH_AS(off.trainer.show_average(true), doctest::Contains("training.ema is 0"), ms::config_error);
}

TEST_CASE_TEMPLATE("cautious AdamW against plain loops", B, ms::reference<double>, ms::cpu<float>) {
  using T = ms::scalar_t<B>;
  constexpr ms::index_t size = 1001;
  B backend;
  const ms::adamw o{.beta1 = 0.8, .beta2 = 0.9, .epsilon = 1e-3, .weight_decay = 0.2, .cautious = true};
  const ms::tensor_info t = tensor(7, 143);
  typename ms::adamw::on<B> state({t});
  std::vector<T> w = random_values<T>(size, 1);
  std::vector<double> want(w.begin(), w.end()), m(size), v(size);
  for (int step = 1; step <= 4; ++step) {
    const std::vector<T> g = random_values<T>(size, 10 + std::uint64_t(step));
    state.update(backend, o, t, {w.data(), size}, {g.data(), size}, 0.1, std::uint64_t(step), 0.5);
    int agreeing = 0;
    for (std::size_t i = 0; i < size; ++i) {
      const double scaled = 0.5 * double(g[i]);
      m[i] = 0.8 * m[i] + 0.2 * scaled, v[i] = 0.9 * v[i] + 0.1 * scaled * scaled;
      agreeing += m[i] * scaled > 0;
    }
    if (step > 1) CHECK(agreeing < size);
    for (std::size_t i = 0; i < size; ++i) {
      const double update = m[i] / (1 - std::pow(0.8, step)) / (std::sqrt(v[i] / (1 - std::pow(0.9, step))) + 1e-3);
      want[i] *= 1 - 0.1 * 0.2;
      if (m[i] * double(g[i]) > 0) want[i] -= 0.1 * update * double(size) / agreeing;
      CHECK(double(w[i]) == doctest::Approx(want[i]).epsilon(1e-4));
    }
  }
}

TEST_CASE("AdamW takes neighbours together, with the bits of one by one") {
  using together = counting_adamw<true>;
  using apart = counting_adamw<false>;
  const auto steps = [](const auto& o) {
    together::updates = apart::updates = 0;
    return two_steps(o);
  };
  const auto one_by_one = steps(apart{{.lr = 0.01}});
  CHECK(apart::updates > 2 * 60);
  CHECK(steps(together{{.lr = 0.01}}) == one_by_one);
  // The embedding; two norms of each layer and what follows them, where a bias of routing stands between in 2 of 4; the
  // last norm and the head; a norm and the matrices of each of two exits.
  CHECK(together::updates == 2 * (1 + 4 * 4 + 2 + 2 + 4));

  const auto exits_alone = steps(ms::only_exits<apart>{{{.lr = 0.01}}});
  CHECK(exits_alone != one_by_one);
  CHECK(steps(ms::only_exits<together>{{{.lr = 0.01}}}) == exits_alone);

  steps(together{{.lr = 0.01, .cautious = true}});
  CHECK(together::updates > 2 * 60);
}

TEST_CASE("optimizer numbers that mean nothing are refused by name") {
  ms::model<plain, ms::cpu<float>> m(shape);
  const auto refused = [&](ms::muon o, const char* message) {
    CHECK_THROWS_WITH_AS((ms::trainer<plain, ms::cpu<float>, ms::muon>(m, {.optimizer = o})),
                         doctest::Contains(message), ms::config_error);
  };
  refused({.lr = 0}, "training.optimizer.lr");
  refused({.momentum = 1}, "momentum must be in [0, 1)");
  refused({.momentum = std::nan("")}, "momentum must be in [0, 1)");
  refused({.iterations = 0}, "iterations must be from 1 to 100");
  refused({.weight_decay = -1}, "weight_decay must be 0 or more");
  refused({.beta2 = 1}, "beta1 and beta2 must be in [0, 1)");
  for (const double ema : {1.0, -0.1, std::nan("")})
    CHECK_THROWS_WITH_AS((ms::trainer<plain, ms::cpu<float>>(m, {.ema = ema})), doctest::Contains("training.ema"),
                         ms::config_error);
}
