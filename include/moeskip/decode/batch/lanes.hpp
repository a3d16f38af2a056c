// The lanes of a batch. In each a sequence goes on in a fibre until it needs a call of a model, and waits. When all
// wait, the request that stands lowest is served, with all that one call can serve with it: the drafts' models go
// before the batch's own, and shallow layers before deep ones, so that drafts are finished before verifications, which
// so come together. A call of layers stops where others wait to join. Nobody is passed over for ever.
#pragma once

#include <algorithm>
#include <chrono>
#include <memory>
#include <span>
#include <tuple>
#include <vector>

#include "moeskip/base/fibre.hpp"
#include "moeskip/decode/batch/request.hpp"
#include "moeskip/decode/batch/stats.hpp"

namespace moeskip {

class batch_lanes {
 public:
  batch_lanes(int slots, batch_stats& stats) : stats_(stats), lanes_(std::size_t(slots)) {}
  batch_lanes(const batch_lanes&) = delete;

  int slots() const { return int(lanes_.size()); }
  batch_stats& stats() { return stats_; }
  bool at_work() const {
    return std::ranges::any_of(lanes_, [](const lane& l) { return l.work != nullptr; });
  }
  static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }

  /// body(slot) for the first `count` slots, each in a fibre, until all have ended. What one of them throws is thrown,
  /// after the others were unwound.
  template <class F> void run(std::size_t count, const F& body) {
    const at_end clear{*this};
    for (std::size_t s = 0; s < std::min(count, lanes_.size()); ++s)
      lanes_[s].work = std::make_unique<fibre>([&body, s] { body(int(s)); });
    for (lane& l : lanes_)
      if (l.work) resume(l);
    while (serve_next()) {}
  }

  // ---- inside a fibre ----

  /// Returns when the request of this slot has been served.
  void wait(int slot, call_request& r) {
    lane& l = lanes_[std::size_t(slot)];
    l.waits = &r, l.since = now();
    l.work->pause();
  }
  /// A clock that stands still while others are served.
  double seconds(int slot) const { return now() - lanes_[std::size_t(slot)].idle; }

  /// Those of the models that draft. They are kept until run() ends.
  std::span<const std::unique_ptr<call_merger>> drafts() const { return drafts_; }
  void add_draft(std::unique_ptr<call_merger> merger) { drafts_.push_back(std::move(merger)); }

 private:
  static constexpr int patience = 32;  // calls: more than most drafts and their heads take

  /// A slot at work.
  struct lane {
    std::unique_ptr<fibre> work{};
    call_request* waits = nullptr;
    double since = 0, idle = 0;  // seconds: when it began to wait, and what it did not work
  };
  /// Unwinds what an exception left waiting, and only then drops what it waited for.
  struct at_end {
    batch_lanes& all;
    ~at_end() {
      for (lane& l : all.lanes_) l = {};
      all.drafts_.clear();
    }
  };

  static void resume(lane& l) {
    l.work->resume();
    if (l.work->done()) l.work.reset();
  }

  /// Whether a is served before b. Impatience has no limit and comes first, so everybody's turn comes.
  static bool before(const call_request& a, const call_request& b) {
    const auto rank = [](const call_request& r) {
      return std::tuple(-(r.passed_over / patience), !r.merger->drafts(), r.layer, r.what);
    };
    return rank(a) < rank(b);
  }

  /// Serves one group, and sets free those that are done. False where nobody waits.
  bool serve_next() {
    const call_request* next = nullptr;
    for (const lane& l : lanes_)
      if (l.waits && (!next || before(*l.waits, *next))) next = l.waits;
    if (!next) return false;
    const call_request first = *next;
    const int stop = gather(first);
    const double start = now();
    first.merger->serve(requests_, stop);
    const double took = now() - start;
    index_t rows = 0;
    for (const call_request* r : requests_) rows += r->rows;
    done_.clear();
    for (lane* l : group_) {
      call_request& r = *l->waits;
      l->idle += now() - l->since - took * double(r.rows) / double(rows);
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
  /// Fills group_ and requests_ with those that a call for `first` serves; returns the layer that it runs to.
  int gather(const call_request& first) {
    int stop = first.last;
    group_.clear(), requests_.clear();
    for (lane& l : lanes_) {
      if (!l.waits) continue;
      call_request& r = *l.waits;
      if (r.joins(first)) {
        group_.push_back(&l), requests_.push_back(&r);
        stop = std::min(stop, r.last);
        continue;
      }
      ++r.passed_over;
      const bool can_be_met = first.what == call_request::kind::layers && r.merger == first.merger;
      if (can_be_met && r.layer > first.layer) stop = std::min(stop, r.layer);
    }
    return stop;
  }

  batch_stats& stats_;
  std::vector<std::unique_ptr<call_merger>> drafts_;
  std::vector<lane> lanes_;              // by slot
  std::vector<lane*> group_, done_;      // of one call
  std::vector<call_request*> requests_;  // the group's
};

}  // namespace moeskip
