// The training objective and its gradient:
//   total = Σ_e weight_e · CE_e  +  mean over MoE layers of (balance_loss · balance + z_loss · z)
// CE_e: mean next-token loss (nats) of the exit after e layers. Logits are made, turned into their gradient and used up
// a few rows at a time, so those of several exits never exist together.
#pragma once

#include <algorithm>

#include "moeskip/memory/kv_cache.hpp"
#include "moeskip/model/model.hpp"
#include "moeskip/ops/cross_entropy.hpp"
#include "moeskip/train/batches.hpp"
#include "moeskip/train/exit_scale.hpp"

namespace moeskip {

template <class T> struct training_losses {
  T total{};
  std::array<T, std::size_t(layer_set::capacity) + 1> exits{};  // CE by exit layer; 0 where not enabled
  T balance{}, z{};                                             // unweighted, mean over MoE layers
};

/// Row numbers of a batch: sequence s is slot s, positions from 0.
inline token_rows batch_rows(int sequences, int length, arena& memory) {
  vec<int> slot = memory.take<int>(sequences * length), position = memory.take<int>(sequences * length);
  for (int n = 0; n < sequences * length; ++n) slot[n] = n / length, position[n] = n % length;
  return {slot, position};
}

namespace detail {

/// Rows of logits that exist at a time: about a million numbers.
inline index_t logit_rows(index_t rows, index_t vocab) {
  return std::min(rows, std::max<index_t>(64, (index_t{1} << 20) / vocab));
}

/// Mean cross-entropy of one exit over x (N, D). With grads: dx (N, D) += weight times its gradient, and the head's.
template <class V, class B> scalar_t<B> exit_loss(model<V, B>& m, int exit_layer, mat<const scalar_t<B>> x,
                                                  vec<const int> targets, double weight, mat<scalar_t<B>> dx,
                                                  model_weights<V, scalar_t<B>>* grads, arena& memory) {
  using T = scalar_t<B>;
  const auto scope = memory.scope();
  const index_t N = x.rows(), rows = logit_rows(N, m.sizes().vocab);
  const double scale = grads ? weight / double(N) : 0;
  mat<T> logits = memory.take<T>(rows, m.sizes().vocab);
  mat<T> h = memory.take<T>(rows, x.cols());
  vec<T> losses = memory.take<T>(N);
  for (index_t first = 0; first < N; first += rows) {
    const index_t count = std::min(rows, N - first);
    const mat<T> chunk = logits.rows(0, count), normed = h.rows(0, count);
    m.head(chunk, normed, x.rows(first, count), exit_layer);
    cross_entropy(m.backend(), {losses.data() + first, count}, chunk, {targets.data() + first, count}, scale);
    if (!grads) continue;
    m.head_backward(dx.rows(first, count), *grads, chunk, x.rows(first, count), normed, exit_layer, memory);
  }
  T sum{};
  for (const T& loss : losses) sum += loss;
  return sum / T(real_t<T>(N));
}

}  // namespace detail

/// Losses of a batch, and their gradient added to `grads` (a block laid out like the model's weights). `from` and
/// `step` key the random masks of expert and layer dropout.
template <class V, class B>
training_losses<scalar_t<B>> loss_and_gradient(model<V, B>& m, const batch& data, const exit_weights& weights,
                                               model_weights<V, scalar_t<B>>& grads, seed from, std::uint64_t step,
                                               arena& memory) {
  using T = scalar_t<B>;
  const sizes& s = m.sizes();
  const auto scope = memory.scope();
  const index_t N = index_t(data.sequences) * data.length;
  MOESKIP_CHECK(config_error, data.inputs.size() == N && data.targets.size() == N, "a batch of ", data.sequences,
                " sequences of ", data.length, " needs ", N, " inputs and targets, got ", data.inputs.size(), " and ",
                data.targets.size());
  MOESKIP_CHECK(config_error, data.length <= s.context, "sequences of ", data.length,
                " tokens are longer than the context of ", s.context);
  const token_rows rows = batch_rows(data.sequences, data.length, memory);
  tape<T> record(memory, from, step);
  kv_on_arena<T> kv(memory, data.sequences, data.length, s.kv_groups() * s.head_size());
  training_losses<T> losses;

  std::array<mat<T>, std::size_t(layer_set::capacity) + 1> dx_exit{};
  mat<T> x = memory.take<T>(N, s.dim);
  m.embed(x, data.inputs);
  for (int e = 1; e <= s.layers; ++e) {
    x = m.run_layers(e - 1, e, x, kv, rows, record);
    const double weight = weights[std::size_t(e)];
    if (weight == 0 && e < s.layers) continue;
    mat<T>& dx = dx_exit[std::size_t(e)] = memory.take_zeroed<T>(N, s.dim);
    T& loss = losses.exits[std::size_t(e)];
    loss = detail::exit_loss(m, e, x, data.targets, weight, dx, &grads, memory);
    losses.total += T(real_t<T>(weight)) * loss;
  }

  const int moe_layers = std::max(1, s.moe_layers());
  const auto& router = m.configuration().router;
  losses.balance = record.balance / T(real_t<T>(moe_layers)), losses.z = record.z / T(real_t<T>(moe_layers));
  losses.total += T(real_t<T>(balance_weight(router))) * losses.balance + T(real_t<T>(z_weight(router))) * losses.z;

  mat<T> dx = dx_exit[std::size_t(s.layers)];  // the top is always an exit
  for (int l = s.layers - 1; l >= 0; --l) {
    m.layer_backward(l, dx, grads, record, 1.0 / moe_layers);
    if (const mat<T> joins = dx_exit[std::size_t(l)]; joins.data())
      accumulate(m.backend(), {dx.data(), dx.size()}, {joins.data(), joins.size()});
  }
  embed_backward(m.backend(), grads.embedding, dx, data.inputs);
  return losses;
}

}  // namespace moeskip
