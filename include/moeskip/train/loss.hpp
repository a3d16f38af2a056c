// The training objective and its gradient:
//   total = Σ_e weight_e · CE_e  +  mean over MoE layers of the router's weighted losses (ops/route.hpp)
//           + what draws gates of layers to their share (parts/layer_skip/gate.hpp)
// CE_e: mean next-token loss (nats) of the exit after e layers. With distillation, an exit below the top has
//   (1 − a) · CE_e + a · KL_e   instead, KL_e = mean of KL(p_top || p_e), p_top a constant.
// Logits are made, turned into their gradient and used up a few rows at a time: those of one exit, or of one exit and
// its teacher, exist together, never more.
#pragma once

#include <algorithm>

#include "moeskip/memory/kv_cache.hpp"
#include "moeskip/model/model.hpp"
#include "moeskip/ops/cross_entropy.hpp"
#include "moeskip/ops/distillation.hpp"
#include "moeskip/ops/embed.hpp"
#include "moeskip/train/batches.hpp"
#include "moeskip/train/exit_scale.hpp"

namespace moeskip {

template <class T> struct training_losses {
  T total{};
  std::array<T, std::size_t(layer_set::capacity) + 1> exits{};       // CE by exit layer; 0 where not enabled
  std::array<T, std::size_t(layer_set::capacity) + 1> divergence{};  // KL from the top, where exits are distilled
  T balance{}, z{}, change{};                                        // unweighted, mean over MoE layers
  T open_gates{};                                                    // mean chance, where layers have gates
};

/// How well an exit predicts a text.
struct exit_quality {
  int exit_layer;
  double bits_per_token;
};

struct loss_options {
  double progress = 1;  // share of the planned steps that are done: it moves the probabilities of dropout
  double distill = 0;   // a in [0, 1], how much the exits below the top learn from the top instead of from the targets
};

/// Row numbers of a batch: sequence s is slot s, positions from 0.
inline token_rows batch_rows(int sequences, int length, arena& memory) {
  vec<int> slot = memory.take<int>(sequences * length), position = memory.take<int>(sequences * length);
  for (int n = 0; n < sequences * length; ++n) slot[n] = n / length, position[n] = n % length;
  return {slot, position};
}

namespace detail {

/// Rows of logits that exist at a time.
template <class B> index_t logit_rows(index_t rows, index_t vocab) {
  return std::min(rows, std::max<index_t>(64, logits_at_once<B> / vocab));
}

/// losses (N) = the cross-entropy of one exit over x (N, D). With grads: dx (N, D) += weight times the gradient of their
/// mean, and the head's. Whoever reads them settles.
template <class V, class B> void exit_losses(model<V, B>& m, vec<scalar_t<B>> losses, int exit_layer,
                                             mat<const scalar_t<B>> x, vec<const int> targets, double weight,
                                             mat<scalar_t<B>> dx, model_weights<V, scalar_t<B>>* grads, arena& memory) {
  using T = scalar_t<B>;
  const auto scope = memory.scope();
  const forgets_on_failure guard(m.backend());
  const index_t N = x.rows(), rows = logit_rows<B>(N, m.sizes().vocab);
  const double scale = grads ? weight / double(N) : 0;
  mat<T> logits = memory.take<T>(rows, m.sizes().vocab);
  mat<T> h = memory.take<T>(rows, x.cols());
  for (index_t first = 0; first < N; first += rows) {
    const index_t count = std::min(rows, N - first);
    const mat<T> chunk = logits.rows(0, count), normed = h.rows(0, count);
    m.head_forward(chunk, normed, x.rows(first, count), exit_layer);
    cross_entropy(m.backend(), {losses.data() + first, count}, chunk, {targets.data() + first, count}, scale);
    if (scale == 0) continue;  // no gradient is wanted, and cross_entropy left none in the logits
    m.head_backward(dx.rows(first, count), *grads, chunk, x.rows(first, count), normed, exit_layer, memory);
  }
}

template <class T> T mean(vec<const T> losses) {
  T sum{};
  for (const T& loss : losses) sum += loss;
  return sum / T(real_t<T>(losses.size()));
}

/// A residual stream for each exit layer.
template <class T> using exit_streams = std::array<mat<T>, std::size_t(layer_set::capacity) + 1>;

/// Losses of all exits with data in dx, each below the top distilled from it by `share`; dx (N, D) += the gradients.
/// x (N, D): the residual stream after each exit layer. Settles the layers that `record` has recorded.
template <class V, class B> void distilled_losses(model<V, B>& m, const exit_streams<scalar_t<B>>& x,
                                                  const exit_streams<scalar_t<B>>& dx, vec<const int> targets,
                                                  const exit_weights& weights, double share,
                                                  model_weights<V, scalar_t<B>>& grads,
                                                  training_losses<scalar_t<B>>& losses, tape<scalar_t<B>>& record) {
  using T = scalar_t<B>;
  arena& memory = record.memory();
  const auto scope = memory.scope();
  const int top = m.layers();
  const index_t N = targets.size(), rows = logit_rows<B>(N, m.sizes().vocab), D = m.sizes().dim;
  mat<T> logits = memory.take<T>(rows, m.sizes().vocab), teacher = memory.take<T>(rows, m.sizes().vocab);
  mat<T> h = memory.take<T>(rows, D), h_top = memory.take<T>(rows, D);
  const mat<T> ce = memory.take<T>(top + 1, N), kl = memory.take<T>(top + 1, N);
  const auto mean = [&](vec<const T> values) {
    T all{};
    for (index_t first = 0; first < N; first += rows) {
      T sum{};
      for (index_t n = first; n < std::min(first + rows, N); ++n) sum += values[n];
      all += sum / T(real_t<T>(N));
    }
    return all;
  };
  for (index_t first = 0; first < N; first += rows) {
    const index_t count = std::min(rows, N - first);
    const vec<const int> of_chunk{targets.data() + first, count};
    const auto chunk = [&](int e, mat<T> made, mat<T> normed) {
      m.head_forward(made, normed, x[std::size_t(e)].rows(first, count), e);
    };
    const auto of = [&](const mat<T>& values, int e) { return vec<T>(&values(e, first), count); };
    const auto backward = [&](int e, mat<T> dlogits, mat<T> normed) {
      m.head_backward(dx[std::size_t(e)].rows(first, count), grads, dlogits, x[std::size_t(e)].rows(first, count),
                      normed, e, memory);
    };
    chunk(top, teacher.rows(0, count), h_top.rows(0, count));
    for (int e = 1; e < top; ++e) {
      if (!dx[std::size_t(e)].data()) continue;
      chunk(e, logits.rows(0, count), h.rows(0, count));
      distillation(m.backend(), of(ce, e), of(kl, e), logits.rows(0, count), teacher.rows(0, count), of_chunk,
                   weights[std::size_t(e)] / double(N), share);
      backward(e, logits.rows(0, count), h.rows(0, count));
    }
    cross_entropy(m.backend(), of(ce, top), teacher.rows(0, count), of_chunk, weights[std::size_t(top)] / double(N));
    if (weights[std::size_t(top)] != 0) backward(top, teacher.rows(0, count), h_top.rows(0, count));
  }
  m.settle_layers(record);
  for (int e = 1; e <= top; ++e) {
    if (!dx[std::size_t(e)].data()) continue;
    losses.exits[std::size_t(e)] = mean(ce.row(e));
    if (e < top) losses.divergence[std::size_t(e)] = mean(kl.row(e));
    const double a = e < top ? share : 0;
    losses.total += T(real_t<T>(weights[std::size_t(e)])) * (T(real_t<T>(1 - a)) * losses.exits[std::size_t(e)] +
                                                             T(real_t<T>(a)) * losses.divergence[std::size_t(e)]);
  }
}

}  // namespace detail

/// Losses of a batch, and their gradient added to `grads` (a block laid out like the model's weights). `from` and
/// `step` key the random masks of expert and layer dropout.
template <class V, class B>
training_losses<scalar_t<B>> loss_and_gradient(model<V, B>& m, const batch& data, const exit_weights& weights,
                                               model_weights<V, scalar_t<B>>& grads, seed from, std::uint64_t step,
                                               arena& memory, const loss_options& options = {}) {
  using T = scalar_t<B>;
  const sizes& s = m.sizes();
  const auto scope = memory.scope();
  const forgets_on_failure guard(m.backend());
  const index_t N = index_t(data.sequences) * data.length;
  MOESKIP_CHECK(config_error, data.inputs.size() == N && data.targets.size() == N, "a batch of ", data.sequences,
                " sequences of ", data.length, " needs ", N, " inputs and targets, got ", data.inputs.size(), " and ",
                data.targets.size());
  MOESKIP_CHECK(config_error, data.length <= s.context, "sequences of ", data.length,
                " tokens are longer than the context of ", s.context);
  token_rows rows = batch_rows(data.sequences, data.length, memory.of_host());
  rows.token = data.inputs;
  tape<T> record(memory, from, step, options.progress);
  kv_on_arena<T> kv(memory, data.sequences, data.length, s.kv_groups() * s.head_size());
  training_losses<T> losses;

  detail::exit_streams<T> x_exit{}, dx_exit{};
  std::array<vec<T>, std::size_t(layer_set::capacity) + 1> ce{};  // (N)
  mat<T> x = memory.take<T>(N, s.dim);
  embed(m.backend(), x, data.inputs, m.weights().embedding);
  for (int e = 1; e <= s.layers; ++e) {
    x = m.layers_forward(e - 1, e, x, kv, rows, record);
    const double weight = weights[std::size_t(e)];
    if (weight == 0 && e < s.layers) continue;
    mat<T>& dx = dx_exit[std::size_t(e)] = memory.take<T>(N, s.dim);
    fill_with(m.backend(), {dx.data(), dx.size()}, 0);
    x_exit[std::size_t(e)] = x;  // the tape keeps it
    if (options.distill > 0) continue;
    ce[std::size_t(e)] = memory.take<T>(N);
    detail::exit_losses(m, ce[std::size_t(e)], e, x, data.targets, weight, dx, &grads, memory);
  }
  if (options.distill > 0)
    detail::distilled_losses(m, x_exit, dx_exit, data.targets, weights, options.distill, grads, losses, record);
  else m.settle_layers(record);
  for (int e = 1; e <= s.layers; ++e) {
    if (ce[std::size_t(e)].size() == 0) continue;
    T& loss = losses.exits[std::size_t(e)] = detail::mean<T>(ce[std::size_t(e)]);
    losses.total += T(real_t<T>(weights[std::size_t(e)])) * loss;
  }

  const int moe_layers = std::max(1, s.moe_layers());
  const auto& policy = m.configuration().router;
  const T layers = T(real_t<T>(moe_layers));
  const auxiliary_losses<T>& routers = record.auxiliary()[0];
  losses.balance = routers.balance / layers, losses.z = routers.z / layers, losses.change = routers.change / layers;
  losses.total += T(real_t<T>(router::balance_weight(policy))) * losses.balance;
  losses.total += T(real_t<T>(router::z_weight(policy))) * losses.z;
  losses.total += T(real_t<T>(router::change_weight(policy))) * losses.change;
  if constexpr (V::layer_skip::has_gates)
    if (record.gates > 0) {
      const auto& skip = m.configuration().layer_skip;
      losses.open_gates = record.open_gates()[0] / T(real_t<T>(record.gates));
      const T over = losses.open_gates - T(real_t<T>(skip.keep));
      losses.total += T(real_t<T>(skip.pull)) * over * over;
    }

  mat<T> dx = dx_exit[std::size_t(s.layers)];  // the top is always an exit
  for (int l = s.layers - 1; l >= 0; --l) {
    m.layer_backward(l, dx, grads, record, 1.0 / moe_layers);
    if (const mat<T> joins = dx_exit[std::size_t(l)]; joins.data())
      accumulate(m.backend(), {dx.data(), dx.size()}, {joins.data(), joins.size()});
  }
  embed_backward(m.backend(), grads.embedding, dx, data.inputs);
  settle(m.backend());
  return losses;
}

}  // namespace moeskip
