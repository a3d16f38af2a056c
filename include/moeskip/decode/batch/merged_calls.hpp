// The calls of one model by the sequences of a batch, merged. Each slot has a session; what it asks of the model is a
// request that its fibre waits for, and the rows of requests that are served together run in one call, so that weights
// which several need are read once. A call of up to session::invariant_rows rows gives each row the bits of a call of
// its own, and no larger one is made.
//   N rows of a call   D width of the stream   n logits of a row
#pragma once

#include <algorithm>
#include <memory>
#include <span>
#include <vector>

#include "moeskip/decode/batch/lanes.hpp"
#include "moeskip/decode/session.hpp"

namespace moeskip {

template <class V, class B> class merged_calls final : public call_merger, shared_calls<scalar_t<B>> {
  using T = scalar_t<B>;
  using kind = call_request::kind;

  static_assert(KeepsAllTokens<typename V::router>,
                "moeskip: the router of a model in a batch drops tokens over a capacity at inference, so that a "
                "sequence's tokens "
                "would depend on the others. Take the router without router::dropping, or a session for each sequence");

 public:
  using model_type = moeskip::model<V, B>;
  using session_type = moeskip::session<V, B>;

  merged_calls(model_type& m, batch_lanes& all, call_counts& counts, bool drafts)
      : call_merger(drafts), model_(m), lanes_(all), counts_(counts), tape_(memory_, *this) {
    kv_ = std::make_shared<kv_cache<T>>(session_type::cache_for(m, all.slots()));
    shared_calls<T>* const calls = this;
    for (int s = 0; s < all.slots(); ++s) sessions_.push_back(std::make_shared<session_type>(m, kv_, s, calls));
    for (auto* list : {&slot_, &position_, &token_}) list->resize(std::size_t(session_type::invariant_rows));
  }

  const model_type& model() const { return model_; }
  const std::shared_ptr<session_type>& session(int slot) const { return sessions_[std::size_t(slot)]; }
  /// Whether nobody has the session of this slot.
  bool has_free(int slot) const { return session(slot).use_count() == 1; }

  void serve(std::span<call_request* const> group, int stop) override {
    const call_request& first = *group.front();
    tape_.most = first.most_experts;
    const auto scope = memory_.scope();
    for_parts(group, [&](mat<T> x, mat<T> out, const token_rows& at) {
      if (first.what == kind::head) {
        model_.head(out, memory_.template take<T>(x.rows(), x.cols()), x, first.layer);
      } else if (first.what == kind::fill) {
        model_.propagate(first.layer, stop, x, *kv_, at, memory_);
      } else {
        model_.run_layers(first.layer, stop, x, *kv_, at, tape_);
        counts_.layer_calls += stop - first.layer, counts_.layer_rows += (stop - first.layer) * x.rows();
      }
    });
  }

 private:
  struct request : call_request {
    mat<T> x;           // (N, D)
    mat<T> out{};       // (N, n) or empty
    token_rows rows{};  // (N); empty for a head
  };

  /// Routing of a merged call, told to the sequences that it belongs to.
  class shared_tape : public no_tape {
   public:
    shared_tape(arena& memory, merged_calls& all) : no_tape(memory), all_(all) {}
    int most = expert_set::capacity;  // experts that each row visits
    int most_experts() const { return most; }
    ask_ahead asks() const { return asks_; }
    template <class R> void routed(int layer, const R& r, const token_rows& rows) {
      expert_set read;
      for (const int e : r.chosen) read.insert(e);
      all_.counts_.experts_read += read.size();
      for (index_t n = 0, end; n < rows.size(); n = end) {
        for (end = n + 1; end < rows.size() && rows.slot[end] == rows.slot[n];) ++end;
        R mine = r;
        mine.chosen = r.chosen.rows(n, end - n);
        meter(rows.slot[n]).routed(layer, mine, rows.rows(n, end - n));
      }
    }
    void entered(int layer, const token_rows& rows) {
      for (index_t n = 0; n < rows.size(); ++n) meter(rows.slot[n]).entered(layer, rows.rows(n, 1));
    }
    void passed(int layer, const token_rows& rows) {
      all_.counts_.layer_rows -= rows.size();
      for (index_t n = 0; n < rows.size(); ++n) meter(rows.slot[n]).passed(layer, rows.rows(n, 1));
    }

   private:
    routing_meter& meter(int slot) { return all_.session(slot)->meter(); }
    merged_calls& all_;
    const ask_ahead asks_ = all_.model_.asks();
  };

  // ---- inside a fibre ----

  void run(int first, int last, mat<T> x, const token_rows& rows, int most_experts) override {
    model_.check_layers(first, last);
    if (first == last) return;
    wait(rows.slot[0], {{this, kind::layers, first, last, x.rows(), 0, most_experts}, x, {}, rows});
  }
  void logits(mat<T> out, mat<const T> x, int exit_layer, int slot) override {
    model_.check_head(exit_layer, out.cols());
    wait(slot, {{this, kind::head, exit_layer, exit_layer, x.rows(), out.cols()}, changeable(x), out});
  }
  void propagate(int first, mat<const T> x, const token_rows& rows) override {
    model_.check_layers(first, model_.layers());
    if (first == model_.layers()) return;
    wait(rows.slot[0], {{this, kind::fill, first, model_.layers(), x.rows()}, changeable(x), {}, rows});
  }
  double seconds(int slot) const override { return lanes_.seconds(slot); }
  batch_lanes* lanes() override { return &lanes_; }

  void wait(int slot, request r) {
    if (r.x.rows() > 0) lanes_.wait(slot, r);
  }

  // ---- outside ----

  /// Calls f(x, out, rows) for the rows of the group, as many at a time as keep their bits.
  template <class F> void for_parts(std::span<call_request* const> group, F&& f) {
    index_t left = 0;
    for (const call_request* r : group) left += r->rows;
    const bool heads = group.front()->what == kind::head;
    for (place next; left > 0;) {
      const auto scope = memory_.scope();
      const index_t count = std::min<index_t>(left, session_type::invariant_rows), located = heads ? 0 : count;
      const mat<T> x = memory_.template take<T>(count, model_.sizes().dim);
      const mat<T> out = memory_.template take<T>(heads ? count : 0, group.front()->logits);
      const place first = next;
      next = each_row(group, first, count, [&](const request& r, index_t from, index_t to) {
        std::ranges::copy(r.x.row(from), x.row(to).begin());
        if (heads) return;
        slot_[std::size_t(to)] = r.rows.slot[from], position_[std::size_t(to)] = r.rows.position[from];
        token_[std::size_t(to)] = r.rows.token[from];
      });
      f(x, out, token_rows{{slot_.data(), located}, {position_.data(), located}, {token_.data(), located}});
      each_row(group, first, count, [&](request& r, index_t from, index_t to) {
        if (heads) std::ranges::copy(out.row(to), r.out.row(from).begin());
        else if (r.what == kind::layers) std::ranges::copy(x.row(to), r.x.row(from).begin());
      });
      left -= count;
    }
  }
  struct place {
    std::size_t request = 0;  // of the group
    index_t row = 0;          // of that request
  };
  /// The `count` rows of the group from `at` on: f(request, row of it, row of the call). Returns the place behind them.
  template <class F> static place each_row(std::span<call_request* const> group, place at, index_t count, F&& f) {
    for (index_t to = 0; to < count; ++to) {
      request& r = static_cast<request&>(*group[at.request]);
      f(r, at.row, to);
      if (++at.row == r.x.rows()) at = {at.request + 1, 0};
    }
    return at;
  }

  static mat<T> changeable(mat<const T> x) { return {const_cast<T*>(x.data()), x.rows(), x.cols()}; }  // only read

  model_type& model_;
  batch_lanes& lanes_;
  call_counts& counts_;
  arena memory_;
  shared_tape tape_;
  std::shared_ptr<kv_cache<T>> kv_;
  std::vector<std::shared_ptr<session_type>> sessions_;  // by slot
  std::vector<int> slot_, position_, token_;             // of a call's rows
};

}  // namespace moeskip
