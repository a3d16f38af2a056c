// A session whose work is counted as it is done, call by call and stage by stage (eval/stage_work.hpp): weights read,
// keys and values read, products, and the time of each stage, for which the backend is waited for. Prompts are not
// counted, nor is what a draft does in a session of its own (draft::small_model).
#pragma once

#include <algorithm>
#include <chrono>
#include <memory>
#include <vector>

#include "moeskip/decode/session.hpp"
#include "moeskip/eval/stage_work.hpp"
#include "moeskip/model/weights_read.hpp"

namespace moeskip {

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
    for (int l = 0; l < m.layers(); ++l) reads_.push_back(layer_reads_of(m.configuration(), l));
  }
  session_type& session() { return session_; }
  stage_work done{};  // since somebody emptied it
  double bytes(const decode_work& work) const { return work.bytes(sizeof(weight_t<B>), sizeof(T)); }
  double bytes() const { return bytes(done.total()); }

  /// From now on, what the last call for logits said of its first row (V).
  void listen() { said_.resize(std::size_t(model_.sizes().vocab)); }
  vec<const T> said() const { return {said_.data(), index_t(said_.size())}; }

 private:
  /// Rows of a call: how many, the keys that all and the last of them see.
  struct row_summary {
    double count = 0, past = 0, longest = 0;
  };
  static row_summary summary_of(const token_rows& rows) {
    row_summary s{.count = double(rows.size())};
    for (const int position : rows.position) s.past += position + 1, s.longest = std::max(s.longest, position + 1.);
    return s;
  }

  class counting_tape : public no_tape {
   public:
    counting_tape(arena& memory, counted_session& to) : no_tape(memory), to_(to) {}
    int most_experts() const { return most; }
    ask_ahead asks() const { return to_.model_.asks(); }
    void enter(B&, stage next) { to_.enter(next); }
    template <class R> void routed(int layer, const R& r, const token_rows& rows) {
      const layer_reads& w = to_.reads_[std::size_t(layer)];
      expert_set read;
      double chosen = 0;
      for (const int e : r.chosen) read.insert(e), chosen += e >= 0;
      const double N = double(rows.size());
      to_.done[stage::router] += {w.router, 0, w.router * N};
      to_.done[stage::expert] += {w.shared + read.size() * w.expert, 0, w.shared * N + chosen * w.expert};
      to_.session_.meter().routed(layer, r, rows);
    }
    void entered(int layer, const token_rows& rows) {
      running = summary_of(rows);
      to_.session_.meter().entered(layer, rows);
    }
    void passed(int layer, const token_rows& rows) {
      passing = summary_of(rows);
      to_.session_.meter().passed(layer, rows);
    }
    row_summary running{}, passing{};  // of a layer with a gate
    int most = expert_set::capacity;

   private:
    counted_session& to_;
  };

  void run(int first, int last, mat<T> x, const token_rows& rows, int most_experts) override {
    tape_.most = most_experts;
    for (int l = first; l < last; ++l) {
      tape_.running = model_.configuration().has_gate(l) ? row_summary{} : summary_of(rows);
      tape_.passing = {};
      begin(model_.configuration().has_gate(l) ? stage::layer_gate : stage::attention);
      model_.run_layers(l, l + 1, x, *kv_, rows, tape_);
      end();
      count_layer(l);
    }
  }
  /// But for what the tape has counted: router and experts.
  void count_layer(int l) {
    const sizes& s = model_.sizes();
    const layer_reads& w = reads_[std::size_t(l)];
    const double heads = 2.0 * s.heads * s.head_size(), groups = 2.0 * s.kv_groups() * s.head_size();
    const row_summary &running = tape_.running, &passing = tape_.passing;
    const double kv = kv_weights_read(s);
    done[stage::layer_gate] += {w.layer_gate, 0, w.layer_gate * (running.count + passing.count) + kv * passing.count};
    // Who passes by reads weights of keys and values, which are attention's, and read once.
    if (running.count == 0) return void(done[stage::layer_gate] += {kv, 0, 0});
    done[stage::attention] +=
        {w.attention, groups * running.longest, w.attention * running.count + heads * running.past};
    done[stage::dense] += {w.dense, 0, w.dense * running.count};
  }
  void logits(mat<T> out, mat<const T> x, int exit_layer, int) override {
    begin(stage::head);
    const auto head = model_.weights().head(exit_layer);
    const double weights = double(out.cols() * x.cols() + head.down.size() + head.up.size() + head.norm.size());
    const auto scope = memory_.scope();
    const index_t most = std::min<index_t>(x.rows(), session_type::invariant_rows);
    const mat<T> normed = memory_.template take<T>(most, x.cols());
    for (index_t n = 0; n < x.rows(); n += most) {
      const index_t count = std::min(most, x.rows() - n);
      model_.head(out.rows(n, count), normed.rows(0, count), x.rows(n, count), exit_layer);
      done[stage::head] += {weights, 0, weights * double(count)};
    }
    end();
    if (!said_.empty()) std::copy(out.row(0).begin(), out.row(0).end(), said_.begin());
  }
  void propagate(int first, mat<const T> x, const token_rows& rows) override {
    begin(stage::missing_kv);
    const double weights = (model_.layers() - first) * kv_weights_read(model_.sizes());
    model_.propagate(first, model_.layers(), x, *kv_, rows, memory_);
    done[stage::missing_kv] += {weights, 0, weights * double(rows.size())};
    end();
  }

  /// A stage lasts until the next one begins, or end().
  void begin(stage first) {
    settle(model_.backend());
    now_ = first, since_ = seconds(0);
  }
  void enter(stage next) {
    settle(model_.backend());
    const double time = seconds(0);
    done[now_].seconds += time - since_;
    now_ = next, since_ = time;
  }
  void end() { enter(now_); }
  double seconds(int) const override {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }

  model_type& model_;
  std::shared_ptr<kv_cache<T>> kv_;
  arena memory_;
  counting_tape tape_;
  session_type session_;
  std::vector<layer_reads> reads_;  // (L)
  std::vector<T> said_;             // (V) or empty
  stage now_ = stage::attention;
  double since_ = 0;  // when it began, seconds
};

}  // namespace moeskip
