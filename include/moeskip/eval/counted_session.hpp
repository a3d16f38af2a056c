// A session whose work is counted as it is done, call by call: weights read, keys and values read, products. Rows of one call
// read a weight once, in a MoE layer those of the experts that they visit together.     MoESD, arXiv:2505.19645, section 3
//   bytes = weights read · their size + keys and values of the row's past · their size
//   FLOP  = 2 · (weights · rows + 2 · heads · d · past), norms and what is elementwise left out
// Prompts are not counted, nor is what a draft does in a session of its own (draft::small_model).
#pragma once

#include <chrono>
#include <memory>
#include <vector>

#include "moeskip/decode/session.hpp"
#include "moeskip/model/weights_read.hpp"

namespace moeskip {

struct decode_work {
  double weights = 0;   // read, each once a call
  double past = 0;      // keys and values read, scalars
  double products = 0;  // multiply-adds

  decode_work& operator+=(const decode_work& more) {
    weights += more.weights, past += more.past, products += more.products;
    return *this;
  }
  /// per_weight, per_scalar: bytes of a stored weight, and of a key's or value's number.
  double bytes(double per_weight, double per_scalar) const { return weights * per_weight + past * per_scalar; }
  double flop() const { return 2 * products; }
};

/// Decode in its session().
template <class V, class B> class counted_session final : shared_calls<scalar_t<B>> {
 public:
  using T = scalar_t<B>;
  using model_type = moeskip::model<V, B>;
  using session_type = moeskip::session<V, B>;

  explicit counted_session(model_type& m)
      : model_(m),
        kv_(std::make_shared<kv_cache<T>>(session_type::cache_for(m, 1))),
        tape_(memory_, *this),
        session_(m, kv_, 0, this) {
    for (int l = 0; l < m.layers(); ++l) {
      rest_.push_back(layer_weights_read(m.configuration(), l, 0));
      expert_.push_back(layer_weights_read(m.configuration(), l, 1) - rest_.back());
    }
  }
  session_type& session() { return session_; }
  decode_work done{};  // since somebody emptied it
  double bytes() const { return done.bytes(sizeof(weight_t<B>), sizeof(T)); }

  /// From now on, what the last call for logits said of its first row (V).
  void listen() { said_.resize(std::size_t(model_.sizes().vocab)); }
  vec<const T> said() const { return {said_.data(), index_t(said_.size())}; }

 private:
  class counting_tape : public no_tape {
   public:
    counting_tape(arena& memory, counted_session& to) : no_tape(memory), to_(to) {}
    int most_experts() const { return most; }
    template <class R> void routed(int layer, const R& r, const token_rows& rows) {
      expert_set read;
      double chosen = 0;
      for (const int e : r.chosen) read.insert(e), chosen += e >= 0;
      const double expert = to_.expert_[std::size_t(layer)];
      to_.done.weights += read.size() * expert, to_.done.products += chosen * expert;
      to_.session_.meter().routed(layer, r, rows);
    }
    void entered(int layer, const token_rows& rows) { to_.session_.meter().entered(layer, rows); }
    void passed(int layer, const token_rows& rows) {
      passed_by = rows;
      to_.session_.meter().passed(layer, rows);
    }
    token_rows passed_by{};  // the last layer's
    int most = expert_set::capacity;

   private:
    counted_session& to_;
  };

  void run(int first, int last, mat<T> x, const token_rows& rows, int most_experts) override {
    const sizes& s = model_.sizes();
    const double heads = 2.0 * s.heads * s.head_size(), groups = 2.0 * s.kv_groups() * s.head_size();
    tape_.most = most_experts;
    for (int l = first; l < last; ++l) {
      tape_.passed_by = {};
      model_.run_layers(l, l + 1, x, *kv_, rows, tape_);
      const double passed = double(tape_.passed_by.size()), running = double(rows.size()) - passed;
      const double past = past_of(rows) - past_of(tape_.passed_by);
      const double whole = rest_[std::size_t(l)], passing = passing_weights_read(model_.configuration(), l);
      const double longest = running > 0 ? rows.position[rows.size() - 1] + 1 : 0;
      done += {running > 0 ? whole : passing, groups * longest, whole * running + passing * passed + heads * past};
    }
  }
  void logits(mat<T> out, mat<const T> x, int exit_layer, int) override {
    const auto head = model_.weights().head(exit_layer);
    const double weights = double(out.cols() * x.cols() + head.down.size() + head.up.size() + head.norm.size());
    const auto scope = memory_.scope();
    const index_t most = std::min<index_t>(x.rows(), session_type::invariant_rows);
    const mat<T> normed = memory_.template take<T>(most, x.cols());
    for (index_t n = 0; n < x.rows(); n += most) {
      const index_t count = std::min(most, x.rows() - n);
      model_.head(out.rows(n, count), normed.rows(0, count), x.rows(n, count), exit_layer);
      done += {weights, 0, weights * double(count)};
    }
    if (!said_.empty()) std::copy(out.row(0).begin(), out.row(0).end(), said_.begin());
  }
  void propagate(int first, mat<const T> x, const token_rows& rows) override {
    const double weights = kv_weights_read(model_.sizes());
    done += {(model_.layers() - first) * weights, 0, (model_.layers() - first) * weights * double(rows.size())};
    model_.propagate(first, model_.layers(), x, *kv_, rows, memory_);
  }
  double seconds(int) const override {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }

  static double past_of(const token_rows& rows) {
    double sum = 0;
    for (const int position : rows.position) sum += position + 1;
    return sum;
  }

  model_type& model_;
  std::shared_ptr<kv_cache<T>> kv_;
  arena memory_;
  counting_tape tape_;
  session_type session_;
  std::vector<double> rest_, expert_;  // weights of each layer without routed experts, and of one of these
  std::vector<T> said_;                // (V) or empty
};

}  // namespace moeskip
