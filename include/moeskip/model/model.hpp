// The model: embedding, layers, heads. One forward serves training, prefill, decode and verify; they differ in the rows
// they pass, the keys and values they see, and whether the tape records.
#pragma once

#include <concepts>
#include <utility>

#include "moeskip/memory/kv_cache.hpp"
#include "moeskip/model/first_weights.hpp"
#include "moeskip/model/weights.hpp"
#include "moeskip/ops/embed.hpp"
#include "moeskip/ops/note_none.hpp"
#include "moeskip/ops/select_rows.hpp"
#include "moeskip/ops/vector.hpp"

namespace moeskip {

template <class V, class B> class model {
  static_assert(check_variant<V>::passed);
  static_assert(Backend<B>);

 public:
  using variant_type = V;
  using backend_type = B;
  using T = scalar_t<B>;
  using W = weight_t<B>;

  /// Draws the first weights from the seed. Throws config_error where the sizes do not fit together.
  explicit model(const config<V>& c, seed from = {0}) : model(c, uninitialised{}) {
    draw_first_weights<W>(block(), tensors_, layers(), from);
  }

  /// Zero weights, to be loaded.
  struct uninitialised {};
  model(const config<V>& c, uninitialised) : model(c, [](index_t size) { return buffer<W>(size); }) {}

  /// Weights that are there already, in the order of bind_weights(): block(size) gives a buffer with that many
  /// elements. outside: those that are not in it.
  template <std::invocable<index_t> Block>
  model(const config<V>& c, Block&& block, outside_weights<const W> outside = {})
      : config_(c), outside_(std::move(outside)) {
    MOESKIP_CHECK(config_error, valid(c), "config: ", problem(c));
    if constexpr (requires { typename B::isa; })
      MOESKIP_CHECK(config_error, isa::offered().rank >= B::isa::rank, "this program was compiled for ", B::isa::name,
                    ", but this CPU offers only ", isa::offered().name, ": compile it for this machine");
    tensors_ = bind_weights<V, const W>(c, weights_, nullptr, outside_.at);
    block_ = block(block_size(tensors_));
    MOESKIP_CHECK(config_error, block_.size() >= block_size(tensors_), "the block of weights: expected at least ",
                  block_size(tensors_), " elements, got ", block_.size());
    bind_weights<V, const W>(config_, weights_, block_.data(), outside_.at);
    if (bytes_in_files() > 0) asks_ = ask_ahead::foreseen;
  }
  model(const model&) = delete;
  model& operator=(const model&) = delete;
  model(model&&) = default;

  const config<V>& configuration() const { return config_; }
  const moeskip::sizes& sizes() const { return config_.sizes; }
  int layers() const { return config_.sizes.layers; }
  B& backend() { return backend_; }
  const std::vector<tensor_info>& tensors() const { return tensors_; }
  /// All weights, in the order of tensors(). Throws config_error where some stand outside of the block.
  vec<W> block() { return expect_all_in_block(), block_.view(); }
  vec<const W> block() const { return expect_all_in_block(), block_.view(); }
  /// The elements of tensors()[i], wherever they stand.
  vec<const W> tensor(std::size_t i) const {
    const tensor_info& t = tensors_.at(i);
    return {t.offset == tensor_info::outside ? outside_.at[i] : block_.data() + t.offset, t.size};
  }
  /// Bytes of weights that are read where they stand in files (model/mapped.hpp); they are no memory of this process.
  std::size_t bytes_in_files() const {
    index_t elements = block_.borrowed() ? block_.size() : 0;
    for (const tensor_info& t : tensors_) elements += t.offset == tensor_info::outside ? t.size : 0;
    return std::size_t(elements) * sizeof(W);
  }
  /// What is asked for ahead: everything where weights stand in files (model/mapped.hpp) and so may not be in memory.
  /// Sessions and batches made from then on see a change.
  ask_ahead asks() const { return asks_; }
  /// Whoever is about to run the model says so: the host has written its weights.
  void bring() {
    if (!std::exchange(brought_, true)) moeskip::bring(backend_, block_.view());
  }
  void ask(ask_ahead which) { asks_ = which; }
  const model_weights<V, const W>& weights() const { return weights_; }

  /// Whether logits can be taken after this many layers.
  bool has_exit(int exit_layer) const {
    return exit_layer == layers() || (exit_layer > 0 && exit_layer < layers() && weights_.exits.has(exit_layer));
  }

  /// x (N, D) = embedding of tokens (N).
  void embed(mat<T> x, vec<const int> tokens) {
    moeskip::embed(backend_, x, tokens, weights_.embedding);
    hand_over(backend_);
  }

  /// Layers [first, last) on x (N, D); returns the residual stream after them. `kv.layer(l)` holds keys and values.
  /// Throws config_error for layers that the model does not have.
  template <class KeysValues, class Tape>
  mat<T> run_layers(int first, int last, mat<T> x, KeysValues& kv, const token_rows& rows, Tape& tape) {
    static_assert(Tape::records || Observer<Tape, B>,
                  "moeskip: what looks on while a model infers derives from ms::no_tape and hides its functions. See "
                  "moeskip/concepts/observer.hpp");
    if constexpr (Tape::records) {
      x = layers_forward(first, last, x, kv, rows, tape);
      settle_layers(tape);
    } else if constexpr (runs_late<B>) {
      const auto lasting = tape.lasting().scope();
      tape.late().clear();
      x = layers_forward(first, last, x, kv, rows, tape);
      if (keeps(backend_)) return x;  // nothing has been chosen yet
      settle(backend_);
      for (const auto& [layer, r] : tape.late()) moe_of(layer).told(layer, r, rows, tape);
    } else {
      x = layers_forward(first, last, x, kv, rows, tape);
    }
    return x;
  }

  /// What run_layers() asks for. Who records looks at nothing of it before settle_layers(tape).
  template <class KeysValues, class Tape>
  mat<T> layers_forward(int first, int last, mat<T> x, KeysValues& kv, const token_rows& rows, Tape& tape) {
    check_layers(first, last);
    const forgets_on_failure guard(backend_);
    for (int l = first; l < last; ++l) {
      auto scope = tape.layer_scope();
      if constexpr (!Tape::records)
        if ((tape.asks() == ask_ahead::foreseen || tape.foretells()) && l + 1 < layers() && sizes().is_moe(l + 1))
          moe_of(l + 1).foresee(backend_, l + 1, x, kv.layer(l + 1), rows, tape);
      x = run_layer(l, x, kv.layer(l), rows, tape);
    }
    return x;
  }
  /// Waits for layers that were recorded. Throws config_error where a router's choices are none.
  template <class Tape> void settle_layers(Tape& tape) {
    settle(backend_);
    moe<V, B>::expect_sound(tape);
  }

  /// Layer dropout: whether a sequence takes part in layer l of a training step. It skips the layer with the policy's
  /// probability; those that stay are not rescaled (LayerSkip, arXiv:2404.16710, eq. 1).
  bool participates(int l, int sequence, seed from, std::uint64_t step, double progress = 1) const {
    const draws draw{from, stream::layer_dropout};
    return draw.uniform(step, std::uint64_t(l), std::uint64_t(sequence)) >=
           config_.layer_dropout.probability(l, layers(), progress);
  }

  /// Backward of layer l: dx (N, D) is the gradient after it on entry, before it on return. The tape's topmost records
  /// must be that layer's. auxiliary: weight of each MoE layer's balance and z losses in the total.
  template <class Tape>
  void layer_backward(int l, mat<T> dx, model_weights<V, T>& grads, Tape& tape, double auxiliary) {
    const auto scope = tape.memory().scope();
    const participation part = tape.template pop<participation>();
    if (part.everyone) return block_backward(l, dx, grads, tape, auxiliary);
    if (part.selected.empty()) return;
    mat<T> few = tape.memory().template take<T>(part.selected.size(), dx.cols());
    gather_rows(backend_, few, dx, part.selected);
    block_backward(l, few, grads, tape, auxiliary);
    scatter_rows(backend_, dx, few, part.selected);
  }

  /// logits (N, n) of the residual stream x (N, D) after exit_layer layers, for the first n ids of the vocabulary;
  /// normed (N, D) keeps what is projected. Throws config_error where there is no such exit, or n is more than there
  /// are.
  void head(mat<T> logits, mat<T> normed, mat<const T> x, int exit_layer) {
    head_forward(logits, normed, x, exit_layer);
    hand_over(backend_);
  }

  /// What head() asks for; who reads it settles.
  void head_forward(mat<T> logits, mat<T> normed, mat<const T> x, int exit_layer) {
    check_head(exit_layer, logits.cols());
    head_weights<const W> w = weights_.head(exit_layer);
    w.projection = w.projection.rows(0, logits.cols());
    if (w.down.empty()) return norm_linear(backend_, logits, normed, x, w.norm, w.projection, sizes().norm_eps);
    rms_norm(backend_, normed, x, w.norm, sizes().norm_eps);
    const mat<T> middle(logits.data(), x.rows(), w.down.rows());  // the logits' memory has room, and is free until then
    linear(backend_, middle, normed, w.down);
    linear(backend_, normed, middle, w.up, normed);
    linear(backend_, logits, normed, w.projection);
  }

  /// Its backward, which does not wait either: dx (N, D), grads += for dlogits (N, V). normed is as that left it; used up.
  void head_backward(mat<T> dx, model_weights<V, T>& grads, mat<const T> dlogits, mat<const T> x, mat<T> normed,
                     int exit_layer, arena& memory) {
    const auto scope = memory.scope();
    const head_weights<const W> w = weights_.head(exit_layer);
    const head_weights<T> dw = grads.head(exit_layer);
    const float eps = sizes().norm_eps;
    mat<T> dh = memory.take<T>(x.rows(), x.cols());
    if (w.down.empty())
      return norm_linear_backward(backend_, dx, dh, dw.norm, dw.projection, dlogits, x, normed, w.norm, w.projection,
                                  eps);
    const index_t N = x.rows(), r = w.down.rows();
    mat<T> middle = memory.take<T>(N, r), dmiddle = memory.take<T>(N, r), dh_down = memory.take<T>(N, x.cols());
    linear_backward(backend_, dh, dw.projection, dlogits, normed, w.projection);
    rms_norm(backend_, normed, x, w.norm, eps);  // again, without the correction
    linear(backend_, middle, normed, w.down);
    linear_backward(backend_, dmiddle, dw.up, dh, middle, w.up);
    linear_backward(backend_, dh_down, dw.down, dmiddle, normed, w.down);
    accumulate(backend_, {dh.data(), dh.size()}, {dh_down.data(), dh_down.size()});
    rms_norm_backward(backend_, dx, dw.norm, dh, x, w.norm, eps);
  }

  /// Keys and values of layers [first, last) for tokens that left the model after `first` layers with stream x (N, D).
  template <class KeysValues>
  void propagate(int first, int last, mat<const T> x, KeysValues& kv, const token_rows& rows, arena& memory) {
    check_layers(first, last);
    for (int l = first; l < last; ++l) pass_by(l, x, kv.layer(l), rows, memory);
    hand_over(backend_);
  }

  /// Throws config_error unless logits can be taken after this many layers.
  void check_exit(int exit_layer) const {
    if (has_exit(exit_layer)) return;
    std::string names;
    for (int e = 1; e < layers(); ++e)
      if (has_exit(e)) names += text(e, ", ");
    fail<config_error>("exit layer ", exit_layer, " is out of range: this model of ", layers(),
                       " layers has exits after ", names, layers());
  }

  /// Throws config_error unless this exit can give logits for the first `ids` ids.
  void check_head(int exit_layer, index_t ids) const {
    check_exit(exit_layer);
    const index_t rank = weights_.head(exit_layer).down.rows();
    MOESKIP_CHECK(config_error, ids >= rank && ids <= sizes().vocab, "exit layer ", exit_layer,
                  ": expected logits for ", rank, " to ", sizes().vocab, " ids, got ", ids);
  }
  /// Throws config_error unless these are layers of this model.
  void check_layers(int first, int last) const {
    MOESKIP_CHECK(config_error, 0 <= first && first <= last && last <= layers(), "layers [", first, ", ", last,
                  ") are not in this model of ", layers(), " layers");
  }

 private:
  /// Which rows a layer worked on while training; the others passed by.
  struct participation {
    bool everyone;
    vec<const int> selected;  // (M) rows
  };

  void expect_all_in_block() const {
    MOESKIP_CHECK(config_error, outside_.at.empty(),
                  "expected a model with all weights in one block, got one of which ", bytes_in_files(),
                  " bytes are read where they stand in files: load() copies them together");
  }

  attention<V, B> attention_of(int l) const { return {config_.sizes, weights_.layers[std::size_t(l)].attention}; }
  moe<V, B> moe_of(int l) const {
    return {config_.sizes, weights_.layers[std::size_t(l)].moe, config_.router, config_.expert_dropout};
  }
  dense<V, B> dense_of(int l) const { return {config_.sizes, weights_.layers[std::size_t(l)].dense}; }

  auto gate_of(int l) const {
    return layer_gate<typename V::layer_skip, B>{config_.sizes, weights_.layers[std::size_t(l)].gate,
                                                 config_.layer_skip};
  }

  template <class Tape> mat<T> run_layer(int l, mat<T> x, kv_layer<T> kv, const token_rows& rows, Tape& tape) {
    if constexpr (Tape::records) {
      const participation part = draw_participants(l, rows, tape);
      if (!part.everyone) return run_selected(l, x, kv, rows, part, tape);
      mat<T> y = block_forward(l, x, kv, rows, tape);
      tape.save(part);
      return y;
    } else {
      return block_forward(l, x, kv, rows, tape);
    }
  }

  /// Tokens do without layer l, but for their keys and values.
  void pass_by(int l, mat<const T> x, const kv_layer<T>& kv, const token_rows& rows, arena& memory) {
    attention_of(l).append_keys_values(backend_, x, kv, rows, memory);
    if (kv.experts.size()) note_none(backend_, kv.experts, rows);
  }

  /// The layer, for the tokens that its gate, where it has one, lets in.
  template <class Tape> mat<T> block_forward(int l, mat<T> x, kv_layer<T> kv, const token_rows& rows, Tape& tape) {
    if constexpr (V::layer_skip::has_gates)
      if (config_.has_gate(l))
        return gate_of(l).forward(
            backend_, l, x, rows, tape,
            [&](mat<T> in, const token_rows& of) { return sublayers_forward(l, in, kv, of, tape); },
            [&](mat<const T> in, const token_rows& of) { pass_by(l, in, kv, of, tape.memory()); });
    return sublayers_forward(l, x, kv, rows, tape);
  }

  template <class Tape> mat<T> sublayers_forward(int l, mat<T> x, kv_layer<T> kv, const token_rows& rows, Tape& tape) {
    const auto attended = attention_of(l).forward(backend_, x, kv, rows, tape);
    x = attended.y;
    if (sizes().is_moe(l)) {
      x = moe_of(l).forward(backend_, l, attended, kv, rows, tape);
      if constexpr (!V::after_moe::has_dense) return x;
    } else make_due(backend_, attended);
    return dense_of(l).forward(backend_, x, tape);
  }

  template <class Tape>
  void block_backward(int l, mat<T> dx, model_weights<V, T>& grads, Tape& tape, double auxiliary) {
    if constexpr (V::layer_skip::has_gates)
      if (config_.has_gate(l))
        return gate_of(l).backward(backend_, dx, grads.layers[std::size_t(l)].gate, tape,
                                   [&](mat<T> inner) { sublayers_backward(l, inner, grads, tape, auxiliary); });
    sublayers_backward(l, dx, grads, tape, auxiliary);
  }

  template <class Tape>
  void sublayers_backward(int l, mat<T> dx, model_weights<V, T>& grads, Tape& tape, double auxiliary) {
    layer_weights<V, T>& dw = grads.layers[std::size_t(l)];
    if (!sizes().is_moe(l) || V::after_moe::has_dense) dense_of(l).backward(backend_, dx, dw.dense, tape);
    if (sizes().is_moe(l)) moe_of(l).backward(backend_, dx, dw.moe, tape, auxiliary);
    attention_of(l).backward(backend_, dx, dw.attention, tape);
  }

  template <class Tape> participation draw_participants(int l, const token_rows& rows, Tape& tape) {
    if (config_.layer_dropout.probability(l, layers(), tape.progress) <= 0) return {true, {}};
    vec<int> selected = tape.lists().template take<int>(rows.size());
    index_t count = 0;
    bool stays = false;
    for (index_t n = 0; n < rows.size(); ++n) {
      if (n == 0 || rows.slot[n] != rows.slot[n - 1])
        stays = participates(l, rows.slot[n], tape.from, tape.step, tape.progress);
      if (stays) selected[count++] = int(n);
    }
    return {count == rows.size(), {selected.data(), count}};
  }

  template <class Tape>
  mat<T> run_selected(int l, mat<T> x, kv_layer<T> kv, const token_rows& rows, const participation& part, Tape& tape) {
    arena& memory = tape.memory();
    mat<T> y = memory.template take<T>(x.rows(), x.cols());
    copy_into(backend_, {y.data(), y.size()}, {x.data(), x.size()});
    if (const index_t M = part.selected.size(); M > 0) {
      mat<T> few = memory.template take<T>(M, x.cols());
      gather_rows(backend_, few, x, part.selected);
      few = block_forward(l, few, kv, select_rows(rows, part.selected, tape.lists()), tape);
      scatter_rows(backend_, y, few, part.selected);
    }
    tape.save(part);
    return y;
  }

  config<V> config_;
  B backend_{};
  std::vector<tensor_info> tensors_;
  buffer<W> block_;
  outside_weights<const W> outside_;
  ask_ahead asks_ = ask_ahead::nothing;
  bool brought_ = false;  // weights, to where the backend works
  model_weights<V, const W> weights_;
};

}  // namespace moeskip
