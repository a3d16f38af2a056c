// Every op as a call on random data that any backend can make: what comes out of plain loops and out of the phases of
// the CUDA backend must agree.
#pragma once

#include <cmath>
#include <vector>

#include "moeskip/cuda.hpp"
#include "tiny.hpp"
#include "variants.hpp"

namespace tests {

/// Random data of one call, and the numbers that came out.
template <class B> class trial {
 public:
  using T = ms::scalar_t<B>;
  using W = ms::weight_t<B>;

  explicit trial(std::uint64_t seed) : seed_(seed) {}

  B backend{};
  ms::arena memory;
  std::vector<std::vector<double>> out;  // of every array apart

  ms::vec<T> numbers(ms::index_t n) {
    const auto v = memory.take<T>(n);
    for (T& x : v) x = T(float(next()));
    return v;
  }
  ms::mat<T> numbers(ms::index_t rows, ms::index_t cols) { return {numbers(rows * cols).data(), rows, cols}; }
  ms::cube<T> numbers(ms::index_t planes, ms::index_t rows, ms::index_t cols) {
    return {numbers(planes * rows * cols).data(), planes, rows, cols};
  }
  /// Numbers, weights, that bf16 holds exactly.
  ms::mat<T> rounded(ms::index_t rows, ms::index_t cols) {
    const auto m = numbers(rows, cols);
    for (T& x : m) x = T(float(ms::bf16(float(ms::real_part(x)))));
    return m;
  }
  template <class... Extents> auto weights(Extents... extents) {
    const auto v = memory.take<W>(extents...);
    for (W& w : v) w = ms::to<W>(float(ms::bf16(float(next()))));
    return v;
  }
  int between(int low, int high) { return random_between(low, high, seed_, at_++); }
  std::vector<int> ids(int count, int below) {
    std::vector<int> list(static_cast<std::size_t>(count));
    for (int& id : list) id = between(0, below - 1);
    return list;
  }

  template <class... Views> void keep(const Views&... views) {
    ms::settle(backend);
    const auto one = [&](const auto& v) {
      out.emplace_back();
      for (const auto& x : v) out.back().push_back(ms::to<double>(x));
    };
    (one(views), ...);
  }

 private:
  double next() { return random_number(seed_, at_++); }
  std::uint64_t seed_, at_ = 0;
};

inline ms::vec<const int> list(const std::vector<int>& v) { return {v.data(), v.size()}; }

/// What comes out of a case.
template <class B, class Case> auto run(const Case& c, std::uint64_t seed) {
  trial<B> t(seed);
  c(t);
  return t.out;
}

/// How the emulator plays, while it lives.
struct emulated {
  explicit emulated(const ms::emulation& e) { ms::emulation::here() = e; }
  emulated(const emulated&) = delete;
  ~emulated() { ms::emulation::here() = {}; }
};

/// Rows of two sequences with a few tokens before them.
struct two_sequences {
  std::vector<int> slot, position, token;
  two_sequences(int first, int second, int before = 0) {
    for (int n = 0; n < first + second; ++n) {
      slot.push_back(n < first ? 0 : 1);
      position.push_back(before + (n < first ? n : n - first)), token.push_back(n % 7);
    }
  }
  ms::token_rows rows() const { return {list(slot), list(position), list(token)}; }
};

// A case names the phases that it is about, and runs its op on a trial. `many` asks for more rows than a decode has.

struct linear_case {
  static constexpr const char* phase = "product";
  bool many;
  template <class B> void operator()(trial<B>& t) const {
    const int N = many ? t.between(17, 90) : t.between(1, 16), I = t.between(1, 300), O = t.between(1, 70);
    const auto x = t.numbers(N, I), y = t.numbers(N, O), dx = t.numbers(N, I);
    const auto w = t.weights(O, I);
    const auto dw = t.numbers(O, I), z = t.numbers(N, O);
    ms::linear(t.backend, y, x, w);
    t.keep(y);
    ms::linear(t.backend, z, x, w, y);
    ms::linear(t.backend, y, x, w, y);
    ms::linear_backward(t.backend, dx, dw, y, x, w);
    t.keep(y, dx, dw, z);
  }
};

/// Products of more tiles than one, of numbers that bf16 holds; not among each_case.
struct rounded_case {
  template <class B> void operator()(trial<B>& t) const {
    const int N = t.between(100, 280), I = t.between(1, 150), O = t.between(100, 150);
    const auto x = t.rounded(N, I), y = t.rounded(N, O), dx = t.numbers(N, I), z = t.numbers(N, O);
    const auto w = t.weights(O, I);
    const auto dw = t.numbers(O, I);
    ms::linear(t.backend, z, x, w);
    ms::linear_backward(t.backend, dx, dw, y, x, w);
    t.keep(z, dx, dw);
  }
};

struct norm_case {
  static constexpr const char* phase = "rms_norm";
  bool many;
  template <class B> void operator()(trial<B>& t) const {
    const int N = many ? 300 : t.between(5, 16), D = t.between(1, 80);
    const auto x = t.numbers(N, D), y = t.numbers(N, D), dx = t.numbers(N, D);
    const auto gain = t.weights(D);
    const auto dgain = t.numbers(D);
    ms::rms_norm(t.backend, y, x, gain, 1e-5f);
    ms::rms_norm_backward(t.backend, dx, dgain, y, x, gain, 1e-5f);
    t.keep(y, dx, dgain);
    const int O = t.between(1, 70);
    const auto w = t.weights(O, D);
    const auto z = t.numbers(N, O);
    ms::norm_linear(t.backend, z, y, x, gain, w, 1e-5f);
    t.keep(z, y);
  }
};

struct attend_case {
  static constexpr const char* phase = "attend";
  bool many;
  template <class B> void operator()(trial<B>& t) const {
    using T = ms::scalar_t<B>;
    const int G = t.between(1, 2), H = G * t.between(1, 3), d = 2 * t.between(1, many ? 24 : 6), C = many ? 150 : 12;
    const int before = many ? t.between(0, 140) : 0;
    const ms::attention_shape s{H, G, d, 10000.f, 1.f / std::sqrt(float(d)), {}, 2 * t.between(0, d / 2)};
    const two_sequences rows(t.between(1, 4), t.between(1, 4), before);
    const auto N = ms::index_t(rows.slot.size());
    const auto qkv = t.numbers(N, (H + 2 * G) * d), dqkv = t.numbers(N, (H + 2 * G) * d);
    const auto q = t.numbers(N, H * d), dq = t.numbers(N, H * d), out = t.numbers(N, H * d);
    const ms::kv_layer<T> kv{t.numbers(2, C, G * d), t.numbers(2, C, G * d)};
    const ms::kv_layer<T> dkv{t.numbers(2, C, G * d), t.numbers(2, C, G * d)};
    ms::rope_append(t.backend, q, kv, qkv, rows.rows(), s);
    ms::attend(t.backend, out, q, kv, rows.rows(), s, t.memory);
    t.keep(q, kv.keys, kv.values, out);
    if (many) return;
    ms::attend_backward(t.backend, dq, dkv, out, q, kv, rows.rows(), s, t.memory);
    ms::rope_append_backward(t.backend, dqkv, dq, dkv, rows.rows(), s);
    t.keep(dq, dkv.keys, dkv.values, dqkv);
    ms::rope_append(t.backend, {}, kv, t.numbers(N, 2 * G * d), rows.rows(), s);
    t.keep(kv.keys, kv.values);
  }
};

/// Attention of a few rows of two sequences that see each other, or of one, with all that a projection may ask for; many:
/// behind enough tokens for several splits of the keys.
struct append_attend_case {
  static constexpr const char* phase = "append_attend";
  bool many;
  int before = -1;  // tokens; default: some
  template <class B> void operator()(trial<B>& t) const {
    using T = ms::scalar_t<B>;
    const int G = t.between(1, 2), H = G * t.between(1, many ? 5 : 3), d = 2 * t.between(1, many ? 70 : 12);
    const int past = before >= 0 ? before : many ? t.between(60, 140) : t.between(0, 3);
    const ms::attention_shape s{H, G, d, 10000.f, 2.f / std::sqrt(float(d)), {}, 2 * t.between(0, d / 2)};
    const two_sequences rows(t.between(1, many ? 3 : 8), t.between(0, many ? 1 : 8), past);
    const auto N = ms::index_t(rows.slot.size());
    const auto qkv = t.numbers(N, (H + 2 * G) * d), out = t.numbers(N, H * d);
    const ms::kv_layer<T> kv{t.numbers(2, past + 9, G * d), t.numbers(2, past + 9, G * d)};
    ms::qkv_adjustment<ms::weight_t<B>> a{.eps = 1e-5f};
    if (t.between(0, 1)) a.bias = t.weights(qkv.cols());
    if (const int norm = t.between(0, 2); norm > 0)
      a.q_gain = t.weights(norm == 1 ? d : H * d), a.k_gain = t.weights(norm == 1 ? d : G * d);
    ms::append_attend(t.backend, out, qkv, kv, rows.rows(), a, s, t.memory);
    t.keep(out, kv.keys, kv.values);
  }
};

/// Attention of more rows than a tile has, behind earlier tokens, of numbers that bf16 holds; `many`: heads of more than
/// 64 numbers. Not among each_case: slow where a warp makes a row.
struct long_attend_case {
  static constexpr const char* phase = "attend_tiles";
  bool many, steep = false;  // steep: scores far from zero, and rows of both sequences in turn
  template <class B> void operator()(trial<B>& t) const {
    using T = ms::scalar_t<B>;
    const int G = t.between(1, 2), H = G * t.between(1, 2), d = many ? 2 * t.between(33, 50) : 2 * t.between(1, 32);
    const ms::attention_shape s{H, G, d, 10000.f, (steep ? 60.f : 1.f) / std::sqrt(float(d))};
    two_sequences rows(t.between(40, 90), t.between(10, 40), t.between(0, 60));
    for (std::size_t n = 0; steep && n < rows.slot.size() / 2; n += 3)
      std::swap(rows.slot[n], rows.slot[rows.slot.size() - 1 - n]),
          std::swap(rows.position[n], rows.position[rows.slot.size() - 1 - n]);
    const auto N = ms::index_t(rows.slot.size());
    const auto q = t.rounded(N, H * d), dout = t.rounded(N, H * d), dq = t.numbers(N, H * d), out = t.numbers(N, H * d);
    const auto C = ms::index_t(160), D = ms::index_t(G) * d;
    const auto cached = [&] {
      const auto numbers = t.rounded(2 * C, D);
      return ms::cube<T>(numbers.data(), 2, C, D);
    };
    const ms::kv_layer<T> kv{cached(), cached()}, dkv{cached(), cached()};
    ms::attend(t.backend, out, q, kv, rows.rows(), s, t.memory);
    ms::attend_backward(t.backend, dq, dkv, dout, q, kv, rows.rows(), s, t.memory);
    t.keep(out, dq, dkv.keys, dkv.values);
  }
};

/// Routing by R, then the experts that it chose, forward and backward.
template <class R> struct moe_case {
  static constexpr const char* phase = "product";
  bool many;
  R router{};
  template <class B> void operator()(trial<B>& t) const {
    using T = ms::scalar_t<B>;
    constexpr int K = R::experts_per_token;
    const int E = 6, D = t.between(1, 40), F = t.between(1, 40);
    const two_sequences rows(many ? 20 : t.between(1, 4), many ? 13 : t.between(1, 4));
    const auto N = ms::index_t(rows.slot.size());
    const auto sets = t.memory.template take<ms::expert_set>(1);
    sets[0] = ms::expert_set::first(E).erase(t.between(0, E - 1));
    ms::routing_call<T> call{.alive = {sets}, .rows = rows.rows(), .bias = t.numbers(E), .layer = 2};
    call.training = true, call.from = {5}, call.step = 3;
    const auto logits = t.numbers(N, E * ms::logits_per_expert<R>), dlogits = t.numbers(N, logits.cols());
    const ms::routing<T> r{t.numbers(N, E), t.memory.template take<int>(N, K), t.numbers(N, K), t.numbers(E)};
    ms::route(t.backend, r, logits, router, call, t.memory);
    const auto losses = losses_of(t.backend, r, logits, call, t.memory);
    const T made[3] = {losses.balance, losses.z, losses.change};
    t.keep(r.probability, r.gate, r.load, r.chosen, ms::vec<const T>(made, 3));

    const auto plan = ms::sort_choices(t.backend, r.chosen, E, many ? 9 : 0, t.memory);
    ms::settle(t.backend);
    const ms::index_t M = plan.first[E];
    const auto some = [&](ms::vec<int> v) { return ms::vec<const int>(v.data(), M); };
    t.keep(plan.first, some(plan.row), some(plan.choice), plan.assignment, some(plan.expert));
    int visited = 0;
    for (const int e : plan.visited) visited += e >= 0;
    t.keep(ms::vec<const int>(plan.visited.data(), visited));
    const ms::activation_mask mask{0.3f, {7}, 2, 1, rows.rows()};
    const ms::expert_weights<const ms::weight_t<B>> w{t.weights(E, 2 * F, D), t.weights(E, D, F)};
    const ms::expert_weights<T> dw{t.numbers(E, 2 * F, D), t.numbers(E, D, F)};
    const auto h = t.numbers(N, D), y = t.numbers(N, D), residual = t.numbers(N, D), dh = t.numbers(N, D);
    const auto gate_up = t.numbers(plan.size(), 2 * F), dgate = t.numbers(N, K);
    ms::experts(t.backend, y, gate_up, residual, h, r, plan, w, t.memory, many ? mask : ms::activation_mask{});
    t.keep(y, gate_up.rows(0, M));
    ms::experts_backward(t.backend, dh, dgate, dw, residual, gate_up, h, r, plan, w, t.memory,
                         many ? mask : ms::activation_mask{});
    ms::route_backward(t.backend, dlogits, dgate, logits, r, router, call, {0.3, 0.2, 0.1}, t.memory);
    t.keep(dh, dgate, dw.gate_up.together(), dw.down.together(), gate_up.rows(0, M), dlogits);
  }
};

/// What expert dropout P draws for a layer, and masks of outputs by it. Not among each_case.
template <class P> struct mask_case {
  P policy{};
  template <class B> void operator()(trial<B>& t) const {
    constexpr int E = 70, K = 3;
    const two_sequences rows(t.between(1, 60), t.between(1, 40), t.between(0, 9));
    const auto N = ms::index_t(rows.slot.size());
    const ms::mask_key key{ms::seed{3}, std::uint64_t(t.between(0, 99)), t.between(0, 7), 8, 0.5};
    const auto alive = ms::draw_living_experts(t.backend, policy, key, rows.rows(), E, K, t.memory);
    ms::settle(t.backend);
    t.out.emplace_back();
    for (const ms::expert_set& set : alive.sets)
      for (int e = 0; e < ms::expert_set::capacity; ++e) t.out.back().push_back(set.contains(e));

    const auto chosen = t.memory.template take<int>(N, K);
    for (int& e : chosen) e = t.between(-1, E - 1);
    const auto gate = t.numbers(N, K), weight = t.numbers(N, K);
    const ms::output_mask mask{0.4f, key.from, key.step, key.layer, rows.rows()};
    ms::mask_outputs(t.backend, weight, gate, chosen, mask);
    ms::mask_outputs(t.backend, gate, gate, chosen, mask);
    t.keep(weight, gate);
  }
};

/// Gates of a layer, and how far loads lie above their mean.
struct gates_case {
  static constexpr const char* phase = "open_gates";
  bool many;
  template <class B> void operator()(trial<B>& t) const {
    const two_sequences rows(t.between(1, many ? 500 : 9), t.between(1, 9));
    const auto N = ms::index_t(rows.slot.size()), D = ms::index_t(t.between(1, 40));
    const auto x = t.numbers(N, D), made = t.numbers(N, D), y = t.numbers(N, D), d = t.numbers(N, D);
    const auto logit = t.numbers(N, 1), dlogit = t.numbers(N, 1), past = t.numbers(N, D);
    const auto opened = t.numbers(N), chances = t.numbers(1);
    const ms::gate_slope slope{0.3f, 0.5f};
    ms::open_gates(t.backend, opened, chances, logit, slope, {{4}, 3, 2, rows.rows()});
    ms::pass_gates(t.backend, y, x, made, opened);
    ms::pass_gates_backward(t.backend, d, past, dlogit, x, made, opened, logit, slope, {chances, 3, 0.6f, 2.f});
    t.keep(opened, chances, y, d, past, dlogit);

    const int E = t.between(2, 90);
    const auto sets = t.memory.template take<ms::expert_set>(N);
    for (ms::expert_set& alive : sets) {
      alive = {};
      for (int i = 0; i < 2; ++i) alive.insert(t.between(0, E - 1));
    }
    const auto load = t.numbers(E), error = t.numbers(E);
    ms::add_load_errors(t.backend, error, load, {sets});
    t.keep(error);
  }
};

/// Few rows of more numbers than a lane asks for at once, and of experts that rows share. Not among each_case.
struct long_rows_case {
  template <class B> void operator()(trial<B>& t) const {
    using T = ms::scalar_t<B>;
    constexpr int E = 3, K = 2;
    const int N = t.between(1, 12), D = t.between(1025, 2300), O = t.between(1, 30);
    const auto x = t.numbers(N, D), y = t.numbers(N, O), h = t.numbers(N, D);
    const auto w = t.weights(O, D);
    ms::linear(t.backend, y, x, w, y);
    t.keep(y);
    ms::norm_linear(t.backend, y, h, x, t.weights(D), w, 1e-5f);
    t.keep(y, h);
    const ms::routing<T> r{t.numbers(N, E), t.memory.template take<int>(N, K), t.numbers(N, K), t.numbers(E)};
    for (ms::index_t n = 0; n < N; ++n)
      for (int k = 0; k < K; ++k) r.chosen(n, k) = (int(n) + k) % E;
    const auto plan = ms::sort_choices(t.backend, r.chosen, E, 0, t.memory);
    const auto visit = [&](int dim, int units) {
      const ms::expert_weights<const ms::weight_t<B>> of{t.weights(E, 2 * units, dim), t.weights(E, dim, units)};
      const auto in = t.numbers(N, dim), out = t.numbers(N, dim), gate_up = t.numbers(plan.size(), 2 * units);
      ms::experts(t.backend, out, gate_up, t.numbers(N, dim), in, r, plan, of, t.memory, {});
      t.keep(out, gate_up);
    };
    visit(D, t.between(1, 9)), visit(t.between(1, 9), D);
  }
};

/// Routing by R among more experts than a warp has lanes, behind earlier tokens. Not among each_case.
template <class R> struct route_case {
  int first, second;  // rows of two sequences
  R router{};
  template <class B> void operator()(trial<B>& t) const {
    using T = ms::scalar_t<B>;
    constexpr int E = 72, K = R::experts_per_token, C = 40;
    const two_sequences rows(first, second, t.between(0, 5));
    const auto N = ms::index_t(rows.slot.size());
    const auto sets = t.memory.template take<ms::expert_set>(N);
    for (ms::expert_set& alive : sets) alive = ms::expert_set::first(E).erase(t.between(0, E - 1)).erase(9);
    const ms::cube<int> past(t.memory.template take<int>(2 * C * K).data(), 2, C, K);
    for (ms::index_t i = 0; i < past.size(); ++i) past.data()[i] = int(i % 7 + 10 * (i % K));  // different ones
    ms::routing_call<T> call{
        .alive = {sets}, .rows = rows.rows(), .past = past, .bias = t.numbers(E), .layer = 2, .training = true};
    call.from = {5}, call.step = 3;
    const auto logits = t.numbers(N, E * ms::logits_per_expert<R>);
    const ms::routing<T> r{t.numbers(N, E), t.memory.template take<int>(N, K), t.numbers(N, K), t.numbers(E)};
    ms::route(t.backend, r, logits, router, call, t.memory);
    t.keep(r.chosen, past, r.probability, r.gate, r.load);
  }
};

/// The head of a MoE block with R among many experts, behind a product that is due, of more outputs than one group of
/// blocks makes, and behind one that is made. Not among each_case.
template <class R> struct norm_route_case {
  bool many;
  R router{};
  template <class B> void operator()(trial<B>& t) const {
    using T = ms::scalar_t<B>;
    constexpr int E = 72, K = R::experts_per_token, C = 40;
    const int D = t.between(1, 600), I = t.between(1, 100);
    const two_sequences rows(many ? 20 : t.between(2, 8), many ? 13 : t.between(2, 8), t.between(0, 5));
    const auto N = ms::index_t(rows.slot.size());
    const auto sets = t.memory.template take<ms::expert_set>(1);
    sets[0] = ms::expert_set::first(E).erase(t.between(0, E - 1));
    const ms::cube<int> past(t.memory.template take_zeroed<int>(2 * C * K).data(), 2, C, K);
    const ms::routing_call<T> call{.alive = {sets}, .rows = rows.rows(), .past = past, .layer = 2};
    const auto y = t.numbers(N, D);
    const auto gain = t.weights(D), bias = t.weights(E);
    const auto w = t.weights(E * ms::logits_per_expert<R>, D);
    using stream = ms::late_product<T, ms::weight_t<B>>;
    const stream onto_itself{y, y, t.rounded(N, I), t.weights(D, I)}, alone{y, {}, onto_itself.x, onto_itself.w};
    for (const ms::index_t capacity : {0, 2, int(ms::norm_route.unsorted)})
      for (const stream& x : {onto_itself, alone, stream{y}}) {
        const auto h = t.numbers(N, D), logits = t.numbers(N, w.rows());
        const ms::routing<T> r{t.numbers(N, E), t.memory.template take<int>(N, K), t.numbers(N, K), t.numbers(E)};
        const auto plan = ms::norm_route(t.backend, h, logits, r, x,
                                         {gain, w, ms::has_selection_bias<R> ? bias : ms::vec<const ms::weight_t<B>>{}},
                                         1e-5f, router, call, capacity, t.memory);
        // Where nobody asks for a plan it has nothing.
        t.keep(y, h, logits, r.probability, r.chosen, r.gate, r.load, past, plan.first, plan.assignment);
      }
  }
};

/// Products by expert of numbers that bf16 holds: many experts, most rows with one of them. Not among each_case.
struct crowded_case {
  template <class B> void operator()(trial<B>& t) const {
    using T = ms::scalar_t<B>;
    const int E = 40, N = 400, K = 2, D = 40, F = 24;
    std::vector<int> choices;
    for (int n = 0; n < N; ++n) {
      const int first = t.between(0, 3) ? 17 : t.between(0, E - 1);
      choices.push_back(first), choices.push_back((first + 1 + t.between(0, E - 2)) % E);
    }
    const auto chosen = t.memory.template take<int>(N, K);
    std::copy(choices.begin(), choices.end(), chosen.begin());
    const ms::routing<T> r{t.numbers(N, E), chosen, t.numbers(N, K), t.numbers(E)};
    const auto plan = ms::sort_choices(t.backend, chosen, E, 0, t.memory);
    const ms::expert_weights<const ms::weight_t<B>> w{t.weights(E, 2 * F, D), t.weights(E, D, F)};
    const ms::expert_weights<T> dw{t.numbers(E, 2 * F, D), t.numbers(E, D, F)};
    const auto h = t.rounded(N, D), dy = t.rounded(N, D), y = t.numbers(N, D), dh = t.numbers(N, D);
    const auto gate_up = t.numbers(plan.size(), 2 * F), dgate = t.numbers(N, K);
    ms::experts(t.backend, y, gate_up, dy, h, r, plan, w, t.memory);
    t.keep(gate_up, y);
    ms::experts_backward(t.backend, dh, dgate, dw, dy, gate_up, h, r, plan, w, t.memory);
    t.keep(dh, dgate, dw.gate_up.together(), dw.down.together());
  }
};

struct loss_case {
  static constexpr const char* phase = "cross_entropy";
  bool many;
  template <class B> void operator()(trial<B>& t) const {
    const int N = t.between(1, 4), V = many ? 700 : t.between(2, 300);
    const auto logits = t.numbers(N, V);
    for (auto& x : logits) x *= 8;
    const auto losses = t.numbers(N);
    const auto targets = t.ids(N, V);
    ms::cross_entropy(t.backend, losses, logits, list(targets), 0.7);
    t.keep(losses, logits);
  }
};

struct distillation_case {
  static constexpr const char* phase = "distillation";
  bool many;
  template <class B> void operator()(trial<B>& t) const {
    const int N = t.between(1, 3), V = many ? 500 : t.between(2, 300);
    const auto logits = t.numbers(N, V), teacher = t.numbers(N, V);
    for (auto& x : logits) x *= 6;
    for (auto& x : teacher) x *= 6;
    const auto losses = t.numbers(N), divergences = t.numbers(N);
    const auto targets = t.ids(N, V);
    ms::distillation(t.backend, losses, divergences, logits, teacher, list(targets), 0.7, 0.4);
    t.keep(losses, divergences, logits);
  }
};

struct elementwise_case {
  static constexpr const char* phase = "embed";
  bool many;
  template <class B> void operator()(trial<B>& t) const {
    const int N = t.between(1, many ? 60 : 9), V = 9, D = t.between(1, 30), M = t.between(1, N);
    const auto tokens = t.ids(N, V);
    const auto x = t.numbers(N, D), few = t.numbers(M, D), dtable = t.numbers(V, D);
    ms::embed(t.backend, x, list(tokens), t.weights(V, D));
    ms::embed_backward(t.backend, dtable, x, list(tokens));
    std::vector<int> rows;
    for (int m = 0; m < M; ++m) rows.push_back(N - 1 - m);
    ms::gather_rows(t.backend, few, x, list(rows));
    ms::scatter_rows(t.backend, x, few, list(rows));
    t.keep(x, dtable, few);

    const auto gate_up = t.numbers(N, 2 * D), act = t.numbers(N, D), g = t.numbers(N, 1), dg = t.numbers(N, 1);
    ms::swiglu(t.backend, act, gate_up);
    ms::gate_rows(t.backend, x, act, g);
    t.keep(act, x);
    ms::gate_rows_backward(t.backend, act, dg, act, x, g);
    ms::swiglu_backward(t.backend, gate_up, act, gate_up);
    t.keep(act, dg, gate_up);

    const auto a = t.numbers(N * D), b = t.numbers(N * D), m = t.numbers(N * D), v = t.numbers(N * D);
    for (auto& square : v) square = std::abs(square);
    ms::accumulate(t.backend, a, b);
    ms::combine(t.backend, b, 0.3, b, -2, a);
    const auto same = t.numbers(N * D);
    ms::copy_into(t.backend, same, b);
    t.keep(same);
    const auto stored = t.weights(N * D);
    ms::store_weights(t.backend, stored, a);
    t.out.push_back({ms::sum_of_squares(t.backend, b)});
    for (const bool cautious : {false, true})
      ms::adamw_update(t.backend, a, m, v, b, {1e-2, 0.9, 0.95, 1e-8, 0.1, 0.3, 0.2, 0.5, cautious});
    t.keep(a, b, m, v);

    const ms::cube<int> past(t.memory.template take_zeroed<int>(2 * 12 * 3).data(), 2, 12, 3);
    const two_sequences layer(t.between(1, 5), t.between(1, 5), t.between(0, 6));
    ms::note_none(t.backend, past, layer.rows());
    t.keep(past);
  }
};

/// Vectors of several blocks, some of which begin where no quad of numbers may be read at once.
struct vector_case {
  static constexpr const char* phase = "sum_of_squares";
  bool many;
  template <class B> void operator()(trial<B>& t) const {
    using T = ms::scalar_t<B>;
    const ms::index_t n = many ? t.between(4000, 5000) : t.between(1, 9);
    const auto from = [&](int first) {  // n numbers behind `first` others
      const auto all = t.numbers(n + first);
      return ms::vec<T>(all.data() + first, n);
    };
    const auto aligned = from(0), shifted = from(1), w = from(3), m = from(0), v = from(2), g = from(0);
    for (auto& square : v) square = std::abs(square);
    t.out.push_back({ms::sum_of_squares(t.backend, aligned), ms::sum_of_squares(t.backend, shifted)});
    for (const bool cautious : {false, true})
      ms::adamw_update(t.backend, w, m, v, g, {1e-2, 0.9, 0.95, 1e-8, 0.1, 0.3, 0.2, 0.5, cautious});
    ms::fill_with(t.backend, aligned, 0), ms::fill_with(t.backend, shifted, -1.5);
    const auto stored = t.weights(n + 1);
    const auto behind = ms::vec<ms::weight_t<B>>(stored.data() + 1, n);
    ms::store_weights(t.backend, behind, ms::vec<const T>(t.rounded(1, n).data(), n));
    t.keep(w, m, v, aligned, shifted, behind);
  }
};

struct projection_case {
  static constexpr const char* phase = "norm_groups";
  bool many;
  template <class B> void operator()(trial<B>& t) const {
    const int N = many ? 300 : t.between(1, 9), d = t.between(1, 40), M = t.between(1, N);
    const ms::column_groups groups{t.between(0, 3), t.between(1, 3), d};
    const auto P = groups.end() + t.between(0, 5);
    const auto x = t.numbers(N, P), dx = t.numbers(N, P), act = t.numbers(N, d), few = t.numbers(M, P);
    const auto dgain = t.numbers(d), dbias = t.numbers(P), factors = t.numbers(M);
    const auto gain = t.weights(d), bias = t.weights(P);
    ms::norm_groups_backward(t.backend, dx, dgain, x, gain, groups, 1e-5f);
    ms::add_bias(t.backend, x, bias);
    ms::norm_groups(t.backend, x, gain, groups, 1e-5f);
    ms::add_bias_backward(t.backend, dbias, x);
    std::vector<int> rows;
    for (int m = 0; m < M; ++m) rows.push_back(N - 1 - m);
    ms::add_rows(t.backend, x, few, list(rows), factors);
    ms::gated_swiglu(t.backend, act, t.numbers(N, 3 * d));
    t.keep(dx, dgain, x, dbias, act);
  }
};

/// Calls f(case) for all of them.
template <class F> void each_case(F&& f) {
  for (const bool many : {false, true}) {
    f(linear_case{many}), f(norm_case{many}), f(attend_case{many}), f(append_attend_case{many}), f(loss_case{many}),
        f(distillation_case{many});
    f(elementwise_case{many}), f(vector_case{many}), f(projection_case{many}), f(gates_case{many});
    f(moe_case<ms::router::top_k<2>>{many}), f(moe_case<sticky_router>{many});
  }
}

/// The largest difference of numbers that should be alike, relative to their array's root mean square; infinite for
/// NaN.
inline double difference(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return INFINITY;
  double squares = 1e-12, most = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    squares += a[i] * a[i];
    const double apart = std::abs(a[i] - b[i]);
    most = apart <= most ? most : std::isnan(apart) ? INFINITY : apart;
  }
  return most / std::sqrt(squares / double(a.size()));
}
inline double difference(const std::vector<std::vector<double>>& a, const std::vector<std::vector<double>>& b) {
  double most = a.size() == b.size() ? 0 : INFINITY;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) most = std::max(most, difference(a[i], b[i]));
  return most;
}

}  // namespace tests
