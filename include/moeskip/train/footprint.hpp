// The memory of training, from the shapes alone: what there is for each parameter, and what a step keeps of each token.
#pragma once

#include "moeskip/model/describe.hpp"
#include "moeskip/train/trainer.hpp"

namespace moeskip {

/// Bytes of activations on the arena in one micro-batch.
struct activation_bytes {
  index_t kept = 0;     // from forward to backward: the tape, and the gradients that the exits leave
  index_t passing = 0;  // beside them where a block's backward, or a head, needs most
  index_t peak() const { return kept + passing; }
};

namespace detail {

/// The same for one row of a block.
struct row_bytes {
  index_t kept, passing;
};

template <class V, class T> row_bytes attention_bytes(const sizes& s) {
  const index_t D = s.dim, q = s.heads * s.head_size(), kv = s.kv_groups() * s.head_size(), size = sizeof(T);
  const index_t input = V::projection::keeps_input ? q + 2 * kv : 0;
  constexpr index_t run = 2 * sizeof(index_t);       // of one sequence; there is room for one per row
  return {size * (D + q + q + D + input),            // h, q, o, y, what is projected
          size * (q + q + (q + 2 * kv) + D) + run};  // d_o, dq, dqkv, dh
}

template <class T> row_bytes dense_bytes(const sizes& s) {
  const index_t D = s.dim, F = s.dense_width(), size = sizeof(T);
  return {size * (D + 2 * F + F + D), size * (F + D)};  // h, gate_up, act, y; dact, dh
}

template <class V, class T> row_bytes moe_bytes(const config<V>& c, const mask_key& key) {
  using R = typename V::router;
  const sizes& s = c.sizes;
  const index_t D = s.dim, F = s.ffn, E = s.experts, K = R::experts_per_token, size = sizeof(T);
  const index_t logits = E * logits_per_expert<R>, shared = V::shared_expert::kept_activations(s);
  const auto of_assignments = [&](index_t each) { return index_t(router::active_experts(c.router) * double(each)); };
  const index_t gates = draw_outputs(c.expert_dropout, key, {}).masks() ? 2 * K : K;
  const index_t ints = K + K + of_assignments(3);  // chosen; of the dispatch: assignment, row, choice and expert
  const index_t survivors = scope_of(c.expert_dropout) == mask_scope::step ? 0 : sizeof(expert_set);
  const index_t in_shared = shared ? s.shared_width() + 1 + D : 0;  // dact; with a gate dlogit and dh_gate
  return {
      size * (D + logits + E + gates + of_assignments(2 * F) + D + shared) + index_t(sizeof(int)) * ints + survivors,
      size * (D + D + K + logits + std::max(of_assignments(F + D), in_shared))};  // dh twice, dgate, dlogits
}

/// A head's logits, normed rows and their gradients, with those of a teacher and all losses where exits are distilled.
template <class V, class B> index_t head_bytes(const model<V, B>& m, index_t N, int exit_layer, bool distilled) {
  const index_t V_ = m.sizes().vocab, D = m.sizes().dim, rows = logit_rows<B>(N, V_);
  const index_t r = m.weights().head(exit_layer).down.rows(), copies = distilled ? 2 : 1;
  const index_t losses = distilled ? 2 * N * (m.layers() + 1) : 0;
  return index_t(sizeof(scalar_t<B>)) * (rows * (copies * (V_ + D) + D + (r ? 2 * r + D : 0)) + losses);
}

}  // namespace detail

/// What loss_and_gradient will take from the arena, scratch of the cpu backend's kernels included; other backends need
/// less. Left out is what does not grow with the batch, a few KB a layer, and lists of the host. Rows that layer dropout takes out of a layer
/// count for what they still need. Assumes that no assignment is dropped over capacity.
template <class V, class B>
activation_bytes training_activations(const model<V, B>& m, int sequences, int length, const exit_weights& weights,
                                      seed masks, std::uint64_t step, const loss_options& options = {}) {
  using T = scalar_t<B>;
  const sizes& s = m.sizes();
  const index_t N = index_t(sequences) * length, stream = index_t(sizeof(T)) * s.dim;
  const index_t kv = index_t(sizeof(T)) * 2 * s.kv_groups() * s.head_size();
  const detail::row_bytes attention = detail::attention_bytes<V, T>(s), dense = detail::dense_bytes<T>(s);
  activation_bytes bytes{.kept = N * stream};  // the embedding
  for (int l = 0; l < s.layers; ++l) {
    index_t M = 0, few = 0;
    for (int i = 0; i < sequences; ++i) M += length * m.participates(l, i, masks, step, options.progress);
    bytes.kept += N * kv;
    if (M < N) bytes.kept += (N + M) * stream, few = M * stream;
    if (M == 0) continue;
    if (m.configuration().has_gate(l))  // normed, y, logit, opened; in backward past, dh, dlogit
      bytes.kept += M * (2 * stream + 2 * index_t(sizeof(T))), few += M * (2 * stream + index_t(sizeof(T)));
    const mask_key key{masks, step, l, s.layers, options.progress};
    const detail::row_bytes second = s.is_moe(l) ? detail::moe_bytes<V, T>(m.configuration(), key) : dense;
    bytes.kept += M * (attention.kept + second.kept);
    if (s.is_moe(l) && V::after_moe::has_dense)
      bytes.kept += M * dense.kept, bytes.passing = std::max(bytes.passing, few + M * dense.passing);
    bytes.passing = std::max({bytes.passing, few + M * attention.passing + N * kv, few + M * second.passing});
  }
  for (int e = 1; e <= s.layers; ++e) {
    if (weights[std::size_t(e)] == 0 && e < s.layers) continue;
    bytes.kept += N * (stream + (options.distill > 0 ? 0 : index_t(sizeof(T))));  // and the losses
    bytes.passing = std::max(bytes.passing, detail::head_bytes(m, N, e, options.distill > 0));
  }
  return bytes;
}

/// The same of a trainer's coming step.
template <class V, class B, class O, class S>
activation_bytes training_activations(trainer<V, B, O, S>& t, int sequences, int length) {
  const auto& o = t.options();
  return training_activations(t.trained(), sequences, length, t.exit_weights_now(), o.masks,
                              t.next_step() * std::uint64_t(o.accumulate),
                              {.progress = t.progress(), .distill = o.distill});
}

/// A line: bytes of a parameter, and of a token of a batch in the coming step.
template <class V, class B, class O, class S>
std::string describe_memory(trainer<V, B, O, S>& t, int sequences, int length) {
  const double state = double(t.state_bytes()) / double(t.trained().block().size());
  const activation_bytes a = training_activations(t, sequences, length);
  const index_t N = index_t(sequences) * length;
  return text("memory     ", double(sizeof(weight_t<B>)) + state, " bytes per parameter: ", sizeof(weight_t<B>),
              " of weights, ", state, " of gradients and ", O::name, "; ", grouped(a.peak() / N),
              " bytes of activations per token, ", grouped(a.kept / N), " of them from forward to backward\n");
}

}  // namespace moeskip
