// What exact speculative decoding rests on: in a call of 1 to 16 rows, each row has the bits of a call of its own,
// for any number of threads; and a training step has the same bits for any number of threads. Sizes are large enough
// that the work really is split, and odd, so that it is split in unlike shares.
// ctest: optimised
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "tiny.hpp"

using namespace tests;

namespace {

using products_in_bf16 = ms::cpu<ms::bf16, ms::isa::native, ms::bf16>;

constexpr int all_rows = ms::cpu_kernels::max_matvec_tokens;  // 16
constexpr int most_threads = 3;

/// Threads for the calls of a scope.
class with_threads {
 public:
  explicit with_threads(int n) : before_(ms::thread_count()) {
    ms::set_thread_count(n);
    int got = 0;
    ms::parallel([&](int thread, int threads) {
      if (thread == 0) got = threads;
    });
#if defined(_OPENMP)
    REQUIRE(got == n);
#endif
  }
  with_threads(const with_threads&) = delete;
  ~with_threads() { ms::set_thread_count(before_); }

 private:
  int before_;
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

/// call(out (count, width), first, count) computes rows [first, first + count) of the sixteen.
template <class Call> void check_rows(int width, Call&& call) {
  const auto in_calls_of = [&](int rows, int threads) {
    const with_threads scope(threads);
    std::vector<float> out(std::size_t(all_rows * width), NAN);
    for (int first = 0; first < all_rows; first += rows) {
      const int count = std::min(rows, all_rows - first);
      call(ms::mat<float>(out.data() + first * width, count, width), first, count);
    }
    return out;
  };
  const std::vector<float> want = in_calls_of(1, 1);
  REQUIRE(std::all_of(want.begin(), want.end(), [](float x) { return std::isfinite(x); }));
  for (int threads = 1; threads <= most_threads; ++threads)
    for (int rows = 1; rows <= all_rows; ++rows) {
      CAPTURE(threads);
      CAPTURE(rows);
      CHECK(same_bits(in_calls_of(rows, threads), want));
    }
}

/// Random numbers with a shape.
template <class W> struct random_matrix {
  int rows, cols;
  std::vector<W> values;
  random_matrix(int r, int c, std::uint64_t seed) : rows(r), cols(c) {
    for (const float x : random_values<float>(std::size_t(r * c), seed)) values.push_back(W(x));
  }
  ms::mat<const W> view() const { return {values.data(), rows, cols}; }
  ms::mat<const W> view(int first, int count) const { return view().rows(first, count); }
};

struct skipping : ms::variant {
  using expert_dropout = ms::expert_dropout::bernoulli;
  using layer_dropout = ms::layer_dropout::linear;
};
const ms::config<skipping> config{.sizes = {.layers = 3,
                                            .dim = 152,
                                            .heads = 6,
                                            .kv_heads = 2,
                                            .head_dim = 24,
                                            .ffn = 131,
                                            .experts = 8,
                                            .vocab = 701,
                                            .context = 80,
                                            .moe_every = 2},
                                  .exits = ms::exits_after(1, 2)};

}  // namespace

TEST_CASE_TEMPLATE("rows keep their bits: linear, with and without a residual", B, ms::cpu<float>, ms::cpu<ms::bf16>,
                   products_in_bf16) {
  using W = ms::weight_t<B>;
  B backend;
  for (const auto& [O, I] : {std::pair{700, 1100}, std::pair{1101, 35}}) {
    const random_matrix<float> x(all_rows, I, 1), residual(all_rows, O, 2);
    const random_matrix<W> w(O, I, 3);
    check_rows(O,
               [&](ms::mat<float> y, int first, int count) { ms::linear(backend, y, x.view(first, count), w.view()); });
    check_rows(O, [&](ms::mat<float> y, int first, int count) {
      ms::linear(backend, y, x.view(first, count), w.view(), residual.view(first, count));
    });
  }
}

TEST_CASE_TEMPLATE("rows keep their bits: rms_norm", W, float, ms::bf16) {
  constexpr int D = 1100;
  ms::cpu<W> backend;
  const random_matrix<float> x(all_rows, D, 1);
  const random_matrix<W> gain(1, D, 2);
  check_rows(D, [&](ms::mat<float> y, int first, int count) {
    ms::rms_norm(backend, y, x.view(first, count), gain.view().row(0), 1e-5f);
  });
}

TEST_CASE_TEMPLATE("rows keep their bits: attend", W, float, ms::bf16) {
  constexpr int slots = 3, context = 510;
  ms::cpu<W> backend;
  ms::arena memory;
  for (const int groups : {1, 2})  // fewer than threads, and none left over
    for (const bool in_turn : {false, true}) {
      CAPTURE(groups);
      CAPTURE(in_turn);
      const ms::attention_shape shape{.heads = 6, .kv_heads = groups, .head_dim = 40, .scale = 0.16f};
      // A chain of 11 rows that crosses a block of keys, and shorter ones in other slots; or slots row by row.
      std::vector<int> slot, position;
      for (int n = 0; n < all_rows; ++n) {
        slot.push_back(in_turn ? n % slots : n < 2 ? 0 : n < 13 ? 1 : 2);
        position.push_back(slot[std::size_t(n)] == 0 ? 485 + n : slot[std::size_t(n)] == 1 ? 473 + n : 30 + n);
      }
      const ms::token_rows rows{{slot.data(), slot.size()}, {position.data(), position.size()}};
      const random_matrix<float> q(all_rows, shape.q_dim(), 1);
      std::vector<float> keys = random_values<float>(slots * context * std::size_t(shape.kv_dim()), 2);
      std::vector<float> values = random_values<float>(keys.size(), 3);
      const ms::kv_layer<float> kv{{keys.data(), slots, context, shape.kv_dim()},
                                   {values.data(), slots, context, shape.kv_dim()}};
      check_rows(shape.q_dim(), [&](ms::mat<float> out, int first, int count) {
        ms::attend(backend, out, q.view(first, count), kv, rows.rows(first, count), shape, memory);
      });
    }
}

TEST_CASE_TEMPLATE("rows keep their bits: experts", B, ms::cpu<float>, ms::cpu<ms::bf16>, products_in_bf16) {
  using W = ms::weight_t<B>;
  constexpr int D = 264, F = 203, E = 5, K = 3;
  B backend;
  ms::arena memory;
  const random_matrix<float> h(all_rows, D, 1), residual(all_rows, D, 2), gate(all_rows, K, 3);
  const random_matrix<W> gate_up(E * 2 * F, D, 4), down(E * D, F, 5);
  std::vector<int> chosen;  // distinct experts, in several orders
  const std::vector<int> draw = random_tokens(2 * all_rows, E, 6);
  for (int n = 0; n < all_rows; ++n)
    for (int k = 0; k < K; ++k) chosen.push_back((draw[2 * n] + k * (1 + draw[2 * n + 1] % (E - 1))) % E);
  check_rows(D, [&](ms::mat<float> y, int first, int count) {
    const auto scope = memory.scope();
    const ms::mat<float> gates = memory.take<float>(count, K);
    std::copy_n(gate.view().row(first).data(), count * K, gates.data());
    const ms::mat<int> mine(chosen.data() + first * K, count, K);
    const ms::dispatch d = ms::plan_dispatch(mine, E, 0, memory);
    ms::experts(backend, y, memory.take<float>(d.size(), 2 * F), residual.view(first, count), h.view(first, count),
                {{}, mine, gates, {}}, d,
                {ms::cube<const W>(gate_up.values.data(), E, 2 * F, D), ms::cube<const W>(down.values.data(), E, D, F)},
                memory);
  });
}

TEST_CASE_TEMPLATE("rows keep their bits: head", W, float, ms::bf16) {
  ms::model<skipping, ms::cpu<W>> model(config, ms::seed{3});
  const int D = config.sizes.dim;
  ms::arena memory;
  const random_matrix<float> x(all_rows, D, 1);
  for (const int exit_layer : {1, config.sizes.layers})
    check_rows(config.sizes.vocab, [&](ms::mat<float> logits, int first, int count) {
      const auto scope = memory.scope();
      model.head(logits, memory.take<float>(count, D), x.view(first, count), exit_layer);
    });
}

TEST_CASE_TEMPLATE("rows keep their bits: a whole model behind a prompt", B, ms::cpu<float>, products_in_bf16) {
  ms::model<skipping, B> model(config, ms::seed{3});
  const std::vector<int> tokens = random_tokens(35 + all_rows, config.sizes.vocab, 1);
  // Each call goes on where the last one ended, so that keys and values also come from calls of that many rows.
  ms::session<skipping, B> session(model);
  check_rows(config.sizes.vocab, [&](ms::mat<float> logits, int first, int count) {
    if (first == 0) session.prefill(std::vector<int>(tokens.begin(), tokens.begin() + 35));
    const auto scope = session.memory().scope();
    ms::mat<float> x = session.memory().template take<float>(count, config.sizes.dim);
    session.embed(x, {tokens.data() + 34 + first, count}, 34 + first);
    session.logits(logits, session.run(0, config.sizes.layers, x, 34 + first), config.sizes.layers);
  });
}

TEST_CASE_TEMPLATE("training has the same bits on any number of threads", W, float, ms::bf16) {
  const std::vector<int> text = random_tokens(500, config.sizes.vocab, 1);
  const auto trained = [&](int threads) {
    const with_threads scope(threads);
    ms::model<skipping, ms::cpu<W>> model(config, ms::seed{3});
    ms::trainer<skipping, ms::cpu<W>> trainer(model, {});
    ms::random_windows data(text, 4, 70, ms::seed{1});  // 280 rows: two blocks of a norm's gradient
    for (int step = 0; step < 2; ++step) trainer.step(data);
    return std::vector<float>(trainer.master().begin(), trainer.master().end());
  };
  const std::vector<float> want = trained(1);
  for (int threads = 2; threads <= most_threads; ++threads) CHECK(same_bits(trained(threads), want));
}
