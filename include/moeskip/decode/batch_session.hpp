// Several sequences at once. Each is continued by a decoder written for one sequence, in a fibre of its own, with its own
// lengths, exits and acceptance; where fibres wait for the same layers, their rows run in one call, so that weights which
// several need are read once. A row that leaves early waits no longer and costs no more; a sequence that is done makes
// room for the next prompt. A call of up to session::invariant_rows rows gives each row the bits of a call of its own, and
// no larger one is made: whoever else is in the batch, a sequence's tokens are those it would have alone.
#pragma once

#include <algorithm>
#include <chrono>
#include <memory>
#include <span>
#include <vector>

#include "moeskip/base/fibre.hpp"
#include "moeskip/decode/generate.hpp"

namespace moeskip {

/// What the calls of a batch had in common.
struct batch_stats {
  long long layer_calls = 0, layer_rows = 0;  // calls of single layers, and the rows in them
  long long experts_read = 0;                 // distinct experts of each call and layer
  double seconds = 0;
};

template <class V, class B> class batch_session final : shared_calls<scalar_t<B>> {
  using T = scalar_t<B>;
  using session_type = session<V, B>;
  static_assert(
      KeepsAllTokens<typename V::router>,
      "moeskip: V::router drops tokens over a capacity at inference, so that a sequence's tokens would depend on "
      "the others in the batch. Take the router without router::dropping, or a session for each sequence");

 public:
  /// At most `slots` sequences at a time. Throws config_error for fewer than one.
  batch_session(model<V, B>& m, int slots) : model_(m), tape_(memory_, *this) {
    MOESKIP_CHECK(config_error, slots >= 1 && slots <= 4096, "a batch needs from 1 to 4096 slots, got ", slots);
    kv_ = std::make_shared<kv_cache<T>>(session_type::cache_for(m, slots));
    shared_calls<T>* const calls = this;
    for (int i = 0; i < slots; ++i) sessions_.push_back(std::make_unique<session_type>(m, kv_, i, calls));
    lanes_.resize(std::size_t(slots));
    for (auto* list : {&slot_, &position_, &token_}) list->resize(std::size_t(session_type::invariant_rows));
  }

  /// Continues every prompt as generate() does, in any order; sink(i, emitted) gets the tokens of prompt i as they are
  /// settled, and can end its generation by returning false. What fails, fails all of them: throws config_error that names
  /// the prompt, and the batch can be used again.
  template <class Decoder, class Sink> std::vector<generated> generate(std::span<const std::vector<int>> prompts,
                                                                       const generation& options,
                                                                       const Decoder& decoder, Sink&& sink) {
    for (const lane& l : lanes_)
      MOESKIP_CHECK(config_error, !l.work, "this batch is at work: a sink cannot start another generation in it");
    const double start = now();
    stats = {};
    std::vector<generated> out(prompts.size());
    std::size_t next = 0;
    const at_end clear{[&] {  // unwinds what an exception left waiting
      for (lane& l : lanes_) l = {};
    }};
    for (std::size_t s = 0; s < std::min(lanes_.size(), prompts.size()); ++s)
      lanes_[s] = {std::make_unique<fibre>([&, s] {
        while (next < prompts.size()) {
          const std::size_t i = next++;
          try {
            out[i] = moeskip::generate(*sessions_[s], prompts[i], options, decoder,
                                       [&](const emitted& e) { return sink(i, e); });
          } catch (const config_error& e) {
            fail<config_error>("prompts[", i, "]: ", e.what());
          }
        }
      })};
    for (lane& l : lanes_)
      if (l.work) resume(l);
    while (serve_lowest()) {}
    stats.seconds = now() - start;
    return out;
  }
  template <class Decoder> std::vector<generated> generate(std::span<const std::vector<int>> prompts,
                                                           const generation& options, const Decoder& decoder) {
    return generate(prompts, options, decoder, [](std::size_t, const emitted&) {});
  }

  batch_stats stats;

 private:
  static constexpr int patience = 32;  // calls: more than a long draft and its heads take

  enum class kind { head, fill, layers };  // in this order at the same layer: what sets others free goes first

  /// A call that a fibre waits for.
  struct request {
    kind what;
    int layer, last;  // where it stands, and where it wants to be
    mat<T> x;
    mat<T> out{};
    token_rows rows{};
    int most_experts = expert_set::capacity;
    int passed_over = 0;  // times that others were served instead

    index_t count() const { return x.rows(); }
    /// Whether one call can serve both.
    bool joins(const request& other) const {
      return what == other.what && layer == other.layer && out.cols() == other.out.cols() &&
             most_experts == other.most_experts;
    }
  };
  /// A slot at work.
  struct lane {
    std::unique_ptr<fibre> work{};
    request* waits = nullptr;
    double since = 0, idle = 0;  // seconds: when it began to wait, and what it did not work
  };
  template <class F> struct at_end {
    F f;
    ~at_end() { f(); }
  };
  template <class F> at_end(F) -> at_end<F>;

  /// Routing of a merged call, told to the sequences that it belongs to.
  class shared_tape : public no_tape {
   public:
    shared_tape(arena& memory, batch_session& b) : no_tape(memory), batch_(b) {}
    int most_experts() const { return batch_.most_experts_; }
    ask_ahead asks() const { return batch_.model_.asks(); }
    template <class R> void routed(int layer, const R& r, const token_rows& rows) {
      expert_set read;
      for (const int e : r.chosen) read.insert(e);
      batch_.stats.experts_read += read.size();
      for (index_t n = 0, end; n < rows.size(); n = end) {
        for (end = n + 1; end < rows.size() && rows.slot[end] == rows.slot[n];) ++end;
        R mine = r;
        mine.chosen = r.chosen.rows(n, end - n);
        batch_.sessions_[std::size_t(rows.slot[n])]->meter().routed(layer, mine, rows.rows(n, end - n));
      }
    }
    void passed(int layer, const token_rows& rows) {
      batch_.stats.layer_rows -= rows.size();
      for (index_t n = 0; n < rows.size(); ++n)
        batch_.sessions_[std::size_t(rows.slot[n])]->meter().passed(layer, rows.rows(n, 1));
    }

   private:
    batch_session& batch_;
  };

  // ---- inside a fibre ----

  void run(int first, int last, mat<T> x, const token_rows& rows, int most_experts) override {
    model_.check_layers(first, last);
    wait(rows.slot[0], {kind::layers, first, last, x, {}, rows, most_experts});
  }
  void logits(mat<T> out, mat<const T> x, int exit_layer, int slot) override {
    model_.check_head(exit_layer, out.cols());
    wait(slot, {kind::head, exit_layer, exit_layer, changeable(x), out});
  }
  void propagate(int first, mat<const T> x, const token_rows& rows) override {
    model_.check_layers(first, model_.layers());
    wait(rows.slot[0], {kind::fill, first, model_.layers(), changeable(x), {}, rows});
  }
  double seconds(int slot) const override { return now() - lanes_[std::size_t(slot)].idle; }

  void wait(int slot, request r) {
    if (r.count() == 0 || (r.what != kind::head && r.layer == r.last)) return;
    lane& l = lanes_[std::size_t(slot)];
    l.waits = &r, l.since = now();
    l.work->pause();
  }

  // ---- outside ----

  void resume(lane& l) {
    l.work->resume();
    if (l.work->done()) l.work.reset();
  }

  /// Runs the requests that stand at the lowest layer, as far as the next layer where others wait, and sets free those
  /// that are done. Shallow work first: drafts are finished before verifications, which so come together. But nobody is
  /// passed over for ever.
  bool serve_lowest() {
    request* lowest = nullptr;
    const auto before = [](const request& a, const request& b) {
      const bool a_late = a.passed_over > patience, b_late = b.passed_over > patience;
      if (a_late != b_late) return a_late;
      return a.layer != b.layer ? a.layer < b.layer : a.what < b.what;
    };
    for (const lane& l : lanes_)
      if (l.waits && (!lowest || before(*l.waits, *lowest))) lowest = l.waits;
    if (!lowest) return false;
    const request first = *lowest;
    const kind what = first.what;
    const int layer = first.layer;
    int stop = model_.layers();
    group_.clear();
    index_t rows = 0;
    for (lane& l : lanes_) {
      if (!l.waits) continue;
      request& r = *l.waits;
      if (r.joins(first)) group_.push_back(&l), rows += r.count(), stop = std::min(stop, r.last);
      else if (++r.passed_over; r.layer > layer) stop = std::min(stop, r.layer);
    }
    const double start = now();
    const auto scope = memory_.scope();
    if (what == kind::head) stop = layer;
    if (what == kind::fill) stop = model_.layers();
    most_experts_ = first.most_experts;
    for_parts([&](mat<T> x, mat<T> out, const token_rows& at) {
      if (what == kind::head) {
        model_.head(out, memory_.template take<T>(x.rows(), x.cols()), x, layer);
      } else if (what == kind::fill) {
        model_.propagate(layer, stop, x, *kv_, at, memory_);
      } else {
        model_.run_layers(layer, stop, x, *kv_, at, tape_);
        stats.layer_calls += stop - layer, stats.layer_rows += (stop - layer) * x.rows();
      }
    });
    const double took = now() - start;
    done_.clear();
    for (lane* l : group_) {
      request& r = *l->waits;
      l->idle += now() - l->since - took * double(r.count()) / double(rows);
      l->since = now();
      r.passed_over = 0;
      if ((r.layer = stop) >= r.last) l->waits = nullptr, done_.push_back(l);
    }
    for (lane* l : done_) {
      l->idle += now() - l->since;
      resume(*l);
    }
    return true;
  }

  /// Calls f(x, out, rows) for the rows of the group, as many at a time as keep their bits.
  template <class F> void for_parts(F&& f) {
    const index_t D = model_.sizes().dim;
    std::size_t g = 0;
    index_t at = 0;  // row of the g-th request
    while (g < group_.size()) {
      const auto scope = memory_.scope();
      index_t count = 0;
      for (std::size_t h = g; h < group_.size() && count < session_type::invariant_rows; ++h)
        count += group_[h]->waits->count() - (h == g ? at : 0);
      count = std::min<index_t>(count, session_type::invariant_rows);
      const bool heads = group_[g]->waits->what == kind::head;
      const mat<T> x = memory_.template take<T>(count, D);
      const mat<T> out = memory_.template take<T>(heads ? count : 0, group_[g]->waits->out.cols());
      const std::size_t first_group = g;
      const index_t first_at = at;
      each_row(g, at, count, [&](const request& r, index_t from, index_t to) {
        std::ranges::copy(r.x.row(from), x.row(to).begin());
        if (heads) return;
        slot_[std::size_t(to)] = r.rows.slot[from], position_[std::size_t(to)] = r.rows.position[from];
        token_[std::size_t(to)] = r.rows.token[from];
      });
      f(x, out,
        token_rows{{slot_.data(), heads ? 0 : count},
                   {position_.data(), heads ? 0 : count},
                   {token_.data(), heads ? 0 : count}});
      g = first_group, at = first_at;
      each_row(g, at, count, [&](request& r, index_t from, index_t to) {
        if (heads) std::ranges::copy(out.row(to), r.out.row(from).begin());
        else if (r.what == kind::layers) std::ranges::copy(x.row(to), r.x.row(from).begin());
      });
    }
  }
  /// The next `count` rows of the group, from row `at` of request g on; both move behind them.
  template <class F> void each_row(std::size_t& g, index_t& at, index_t count, F&& f) {
    for (index_t to = 0; to < count; ++to) {
      f(*group_[g]->waits, at, to);
      if (++at == group_[g]->waits->count()) ++g, at = 0;
    }
  }

  static mat<T> changeable(mat<const T> x) { return {const_cast<T*>(x.data()), x.rows(), x.cols()}; }  // only read
  static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }

  model<V, B>& model_;
  std::shared_ptr<kv_cache<T>> kv_;
  arena memory_;
  shared_tape tape_;
  std::vector<std::unique_ptr<session_type>> sessions_;  // by slot
  std::vector<lane> lanes_;                              // by slot
  std::vector<lane*> group_, done_;                      // of one call
  std::vector<int> slot_, position_, token_;             // of its rows
  int most_experts_ = expert_set::capacity;              // that these visit
};

}  // namespace moeskip
