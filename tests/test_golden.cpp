// The library against PyTorch: logits of every exit, losses, every gradient, and ten optimizer steps. The
// files of tests/golden hold the same models computed in float64 by make_golden.py, rounded once to float32.
// ctest: optimised
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "moeskip/model/checkpoint.hpp"
#include "moeskip/moeskip.hpp"

namespace ms = moeskip;

namespace {

struct two_layer_moe : ms::variant {
  static constexpr const char* file = "two_layer_moe.safetensors";
};
struct moe_every_2nd_own_heads : ms::variant {
  using shared_expert = ms::shared_expert::gated;
  using exit_head = ms::exit_head::own;
  static constexpr const char* file = "moe_every_2nd_own_heads.safetensors";
};
struct sigmoid_biased : ms::variant {
  using router = ms::router::biased<ms::router::sigmoid_top_k<2>>;
  using shared_expert = ms::shared_expert::always;
  static constexpr const char* file = "sigmoid_biased.safetensors";
};

/// Largest errors allowed, relative to the largest magnitude in the tensor.
struct tolerance {
  double logits, losses, gradients, trained;
};

/// float64: the files round logits, gradients and trained weights to float32 (half a unit, 6e-8), and the
/// scale of attention scores is a float. Measured at worst 6e-8, 4e-9, 2.0e-7, 2.4e-7.
constexpr tolerance in_double{2e-7, 2e-8, 5e-7, 5e-7};
/// float32: sums of 12 to 28 terms, each off by about half a unit times the root of their number, in 30
/// stages one behind the other; a gradient sums over 27 rows besides. Measured at
/// worst 1.3e-6, 2.6e-7, 3.7e-6, 5.3e-6 (2026-11-23; Zen 5; reference and cpu, g++ 12 and clang 14, SSE2 and
/// AVX-512). The rest is for kernels that add in another order.
constexpr tolerance in_float{5e-6, 2e-6, 2e-5, 2e-5};

template <class T> constexpr tolerance tolerance_of() { return std::is_same_v<T, double> ? in_double : in_float; }

/// The largest |got - want| over the largest |want|; infinite where a number is not finite.
template <class T> double relative_error(std::span<const T> got, const std::vector<double>& want) {
  REQUIRE(got.size() == want.size());
  REQUIRE(!want.empty());
  double error = 0, largest = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    if (!std::isfinite(double(got[i])) || !std::isfinite(want[i])) return std::numeric_limits<double>::infinity();
    error = std::max(error, std::abs(double(got[i]) - want[i]));
    largest = std::max(largest, std::abs(want[i]));
  }
  return error == 0 ? 0 : error / largest;  // want may be all zeros
}
template <class T> double relative_error(ms::vec<T> got, const std::vector<double>& want) {
  return relative_error(std::span<const std::remove_const_t<T>>(got.data(), std::size_t(got.size())), want);
}
double relative_error(double got, double want) { return relative_error(std::span<const double>(&got, 1), {want}); }

/// A golden file: a checkpoint, and beside the weights what became of them.
template <class V> struct golden {
  std::string path = std::string(MOESKIP_TEST_DATA) + "/" + V::file;
  ms::safetensors_file file{path};
  ms::config<V> config = ms::from_metadata<V>(file.metadata(), path);
  int steps, sequences, length;

  golden() {
    const ms::array_info* info = file.find("golden.inputs");
    REQUIRE(info);
    REQUIRE(info->shape.size() == 3);
    steps = int(info->shape[0]), sequences = int(info->shape[1]), length = int(info->shape[2]);
    inputs_ = tokens("golden.inputs"), targets_ = tokens("golden.targets");
  }

  template <class B> ms::model<V, B> model() const { return ms::load<V, B>(path); }
  ms::index_t rows() const { return ms::index_t(sequences) * length; }
  ms::batch batch(std::uint64_t step) const {
    const std::size_t first = std::size_t(step) * std::size_t(rows());
    return {{inputs_.data() + first, rows()}, {targets_.data() + first, rows()}, sequences, length};
  }
  std::vector<int> exits() const {
    std::vector<int> all;
    for (int e = 1; e <= config.sizes.layers; ++e)
      if (e == config.sizes.layers || config.exits.contains(e)) all.push_back(e);
    return all;
  }

  std::vector<double> values(const std::string& name, const std::vector<ms::index_t>& extents) const {
    const std::vector<std::int64_t> shape(extents.begin(), extents.end());
    std::size_t count = 1;
    for (const std::int64_t extent : shape) count *= std::size_t(extent);
    std::vector<double> out(count);
    file.read<double>("golden." + name, std::span<const std::int64_t>(shape), std::span<double>(out));
    return out;
  }
  double value(const std::string& name) const { return values(name, {1})[0]; }
  /// "exit_weights" or "layerskip_weights".
  ms::exit_weights weights(const std::string& name) const {
    const std::vector<double> stored = values(name, {config.sizes.layers});
    ms::exit_weights w{};
    for (std::size_t i = 0; i < stored.size(); ++i) w[i + 1] = stored[i];
    return w;
  }

  ms::training<V> training() const {
    ms::training<V> t;
    t.steps = std::uint64_t(setting("training.steps")), t.clip = setting("training.clip");
    t.exit_scale = setting("training.exit_scale");
    t.schedule = {int(setting("training.warmup")), setting("training.floor")};
    t.optimizer = {setting("optimizer.lr"), setting("optimizer.beta1"), setting("optimizer.beta2"),
                   setting("optimizer.epsilon"), setting("optimizer.weight_decay")};
    return t;
  }

 private:
  double setting(const std::string& key) const {
    double value = 0;
    INFO("metadata ", key);
    REQUIRE(file.metadata().contains(key));
    REQUIRE(ms::detail::parse(file.metadata().at(key), value));
    return value;
  }
  std::vector<int> tokens(const char* name) const {
    std::vector<std::int64_t> stored(std::size_t(steps * sequences * length));
    file.read<std::int64_t>(name, {steps, sequences, length}, std::span<std::int64_t>(stored));
    return {stored.begin(), stored.end()};
  }

  std::vector<int> inputs_, targets_;
};

/// Every exit's logits (N, V), the sequences running `at_once` positions a call: kernels differ with the rows
/// of a call.
template <class V, class B> void check_logits(const golden<V>& g, int at_once) {
  using T = ms::scalar_t<B>;
  ms::model<V, B> m = g.template model<B>();
  const ms::sizes& s = m.sizes();
  ms::arena memory;
  ms::no_tape nothing(memory);
  ms::kv_cache<T> kv(s.layers, g.sequences, s.context, s.kv_groups() * s.head_size());
  std::vector<std::vector<T>> logits(std::size_t(s.layers) + 1,
                                     std::vector<T>(std::size_t(g.rows()) * std::size_t(s.vocab)));
  for (int first = 0; first < g.length; first += at_once) {
    const auto scope = memory.scope();
    std::vector<int> token, slot, position;
    for (int n = 0; n < int(g.rows()); ++n)
      if (const int at = n % g.length; at >= first && at < first + at_once)
        token.push_back(g.batch(0).inputs[n]), slot.push_back(n / g.length), position.push_back(at);
    const ms::index_t count = ms::index_t(token.size());
    ms::mat<T> x = memory.take<T>(count, s.dim), normed = memory.take<T>(count, s.dim);
    ms::mat<T> out = memory.take<T>(count, s.vocab);
    m.embed(x, {token.data(), count});
    for (int e = 1; e <= s.layers; ++e) {
      x = m.run_layers(e - 1, e, x, kv, {{slot.data(), count}, {position.data(), count}}, nothing);
      if (!m.has_exit(e)) continue;
      m.head(out, normed, x, e);
      for (ms::index_t n = 0; n < count; ++n) {
        const int row = slot[std::size_t(n)] * g.length + position[std::size_t(n)];
        std::copy_n(out.row(n).data(), s.vocab, logits[std::size_t(e)].data() + row * s.vocab);
      }
    }
  }
  for (const int e : g.exits()) {
    const double error = relative_error(std::span<const T>(logits[std::size_t(e)]),
                                        g.values(ms::text("logits.", e), {g.rows(), s.vocab}));
    INFO("logits of exit ", e, ", ", at_once, " positions at once: error ", error);
    CHECK(error <= tolerance_of<T>().logits);
  }
}

template <class V, class B> void check_gradients(const golden<V>& g) {
  using T = ms::scalar_t<B>;
  ms::model<V, B> m = g.template model<B>();
  ms::arena memory;
  ms::buffer<T> gradients(m.block().size());
  ms::model_weights<V, T> bound;
  ms::bind_weights<V, T>(m.configuration(), bound, gradients.data());
  const auto losses = ms::loss_and_gradient(m, g.batch(0), g.weights("exit_weights"), bound, ms::seed{0}, 0, memory);

  const auto check_loss = [](const std::string& name, T got, double want) {
    const double error = relative_error(double(got), want);
    INFO("loss ", name, ": error ", error);
    CHECK(error <= tolerance_of<T>().losses);
  };
  const std::vector<int> exits = g.exits();
  const std::vector<double> exit_losses = g.values("exit_losses", {ms::index_t(exits.size())});
  for (std::size_t i = 0; i < exits.size(); ++i)
    check_loss(ms::text("of exit ", exits[i]), losses.exits[std::size_t(exits[i])], exit_losses[i]);
  check_loss("balance", losses.balance, g.value("balance"));
  check_loss("z", losses.z, g.value("z"));
  check_loss("total", losses.total, g.value("total"));

  for (const ms::tensor_info& t : m.tensors()) {
    const ms::vec<const T> got(gradients.data() + t.offset, t.size);
    const double error = relative_error(got, g.values("gradient." + t.name, t.shape));
    INFO("gradient of ", t.name, ": error ", error);
    CHECK(error <= tolerance_of<T>().gradients);
  }
}

template <class V, class B> void check_training(const golden<V>& g) {
  using T = ms::scalar_t<B>;
  ms::model<V, B> m = g.template model<B>();
  ms::trainer<V, B> run(m, g.training());
  REQUIRE(g.training().steps == std::uint64_t(g.steps));
  const std::vector<double> totals = g.values("steps.total", {g.steps}), rates = g.values("steps.rate", {g.steps}),
                            norms = g.values("steps.gradient_norm", {g.steps});
  for (std::size_t step = 0; step < totals.size(); ++step) {
    const auto report = run.step([&](std::uint64_t at, std::uint64_t) { return g.batch(at); });
    const double loss = relative_error(double(report.losses.total), totals[step]);
    const double norm = relative_error(report.gradient_norm, norms[step]);
    const double rate = relative_error(report.rate, rates[step]);
    INFO("step ", step, ": errors of loss ", loss, ", gradient norm ", norm, ", learning rate ", rate);
    CHECK(loss <= tolerance_of<T>().losses);
    CHECK(norm <= tolerance_of<T>().gradients);
    CHECK(rate <= 1e-14);
  }
  for (const ms::tensor_info& t : m.tensors()) {
    const ms::vec<const T> got(run.master().data() + t.offset, t.size);
    const double error = relative_error(got, g.values("trained." + t.name, t.shape));
    INFO("trained ", t.name, ": error ", error);
    CHECK(error <= tolerance_of<T>().trained);
  }
}

template <class V, class B> void check_everything() {
  const golden<V> g;
  CAPTURE(B::name());
  check_logits<V, B>(g, g.length);  // as in training and prefill
  check_logits<V, B>(g, 1);         // as in decoding
  check_gradients<V, B>(g);
  check_training<V, B>(g);
}

}  // namespace

TEST_CASE_TEMPLATE("golden: agrees with PyTorch", V, two_layer_moe, moe_every_2nd_own_heads, sigmoid_biased) {
  SUBCASE("reference, float64") { check_everything<V, ms::reference<double>>(); }
  SUBCASE("reference, float32") { check_everything<V, ms::reference<float>>(); }
  SUBCASE("cpu, float32") { check_everything<V, ms::cpu<float>>(); }
}

TEST_CASE_TEMPLATE("golden: LayerSkip's exit weights", V, two_layer_moe, moe_every_2nd_own_heads, sigmoid_biased) {
  const golden<V> g;
  const ms::exit_weights want = g.weights("layerskip_weights");
  const ms::exit_weights got = ms::layerskip_weights(g.config.exits, g.config.sizes.layers, g.training().exit_scale);
  for (std::size_t e = 0; e < want.size(); ++e) CHECK(got[e] == doctest::Approx(want[e]).epsilon(1e-14));
}

// Rounding the weights to 8 significant bits moves a loss by a few percent at most, though it may send a
// token to another expert.
TEST_CASE_TEMPLATE("golden: weights in bf16", V, two_layer_moe, moe_every_2nd_own_heads, sigmoid_biased) {
  using B = ms::cpu<ms::bf16>;
  const golden<V> g;
  ms::model<V, B> m = g.template model<B>();
  ms::arena memory;
  ms::buffer<float> gradients(m.block().size());
  ms::model_weights<V, float> bound;
  ms::bind_weights<V, float>(m.configuration(), bound, gradients.data());
  const auto losses = ms::loss_and_gradient(m, g.batch(0), g.weights("exit_weights"), bound, ms::seed{0}, 0, memory);
  CHECK(losses.total == doctest::Approx(g.value("total")).epsilon(0.03));
  CHECK(losses.total != float(g.value("total")));  // the weights were rounded
}
