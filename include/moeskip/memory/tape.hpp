// The tape is a policy: one forward serves training and inference.
//   tape      keeps what backward needs, in the order it was made; backward pops it in reverse
//   no_tape   keeps nothing: the saving code vanishes, and a layer's temporaries go when the layer ends
#pragma once

#include <cstdint>
#include <new>
#include <type_traits>
#include <vector>

#include "moeskip/base/bit_set.hpp"
#include "moeskip/base/rng.hpp"
#include "moeskip/concepts/observer.hpp"
#include "moeskip/memory/arena.hpp"
#include "moeskip/tensor/routing.hpp"

namespace moeskip {

/// Inference: activations are updated in place and temporaries are returned at the end of each layer.
class no_tape {
 public:
  static constexpr bool records = false;
  explicit no_tape(arena& memory) : memory_(memory) {}

  arena& memory() { return memory_; }
  auto layer_scope() { return memory_.scope(); }
  /// Where the successor of the residual stream x is written: over x itself.
  template <class T> mat<T> successor(mat<T> x) { return x; }
  template <class Record> void save(const Record&) {}

  /// Memory that lasts until a call of run_layers ends.
  arena& lasting() { return lasting_; }
  /// The experts that the layer at hand may choose.
  expert_set& alive() { return alive_; }
  /// On a backend that runs late, what a layer chose is told at the end of the call. Lives in lasting().
  struct late_routing {
    int layer;
    routing<float> r;
  };
  std::vector<late_routing>& late() { return late_; }

  // What an observer hides by functions of its own (concepts/observer.hpp).
  template <class B> static void enter(B&, stage) {}
  static expert_set living(int, int count) { return expert_set::first(count); }
  static constexpr int most_experts() { return expert_set::capacity; }
  static constexpr ask_ahead asks() { return ask_ahead::nothing; }
  static constexpr bool foretells() { return false; }
  template <class Routing, class Rows> static void foreseen(int, const Routing&, const Rows&) {}
  template <class Routing, class Rows> static void routed(int, const Routing&, const Rows&) {}
  template <class Rows> static void entered(int, const Rows&) {}
  template <class Rows> static void passed(int, const Rows&) {}

 private:
  arena& memory_;
  arena lasting_;
  expert_set alive_;
  std::vector<late_routing> late_;
};

/// Training: what is taken while a layer runs stays until the step ends. `from` and `step` key every random mask of
/// the forward pass; `progress`, the share of the planned steps that are done, moves their probabilities. T: scalar of
/// the activations. Whoever makes one has settled what works on this memory.
template <class T> class tape {
 public:
  static constexpr bool records = true;
  /// Throws config_error unless progress is in [0, 1].
  tape(arena& memory, seed key, std::uint64_t step_number, double share_done = 1)
      : from(key),
        step(step_number),
        progress(share_done),
        memory_(memory),
        auxiliary_(memory.take_zeroed<auxiliary_losses<T>>(1)),
        unsound_(memory.take_zeroed<int>(1)),
        open_gates_(memory.take_zeroed<T>(1)) {
    MOESKIP_CHECK(config_error, progress >= 0 && progress <= 1, "tape: progress must be in [0, 1], got ", progress);
  }

  arena& memory() { return memory_; }
  /// For lists that the host makes; they last as long as what is taken from memory().
  arena& lists() { return memory_.of_host(); }
  struct nothing {
    nothing() {}  // user-provided, so that an unused scope is no warning
    ~nothing() {}
  };
  nothing layer_scope() { return {}; }
  template <class B> static void enter(B&, stage) {}
  /// The residual stream before each sublayer is needed by that sublayer's backward: the successor is new memory.
  mat<T> successor(mat<T> x) { return memory_.take<T>(x.rows(), x.cols()); }

  template <class Record> void save(const Record& record) {
    static_assert(std::is_trivially_copyable_v<Record>);
    top_ = new (lists().template take<node<Record>>(1).data()) node<Record>{{&tag<Record>, top_}, record};
  }
  template <class Record> Record pop() {
    MOESKIP_CHECK(error, top_ && top_->kind == &tag<Record>, "tape: backward pops another record than forward saved");
    const Record record = static_cast<const node<Record>*>(top_)->record;
    top_ = top_->below;
    return record;
  }

  const seed from;
  const std::uint64_t step;
  const double progress;
  int gates = 0;  // layers with a gate

  // What layers leave behind, in memory of ops: whoever looks settles before.
  vec<auxiliary_losses<T>> auxiliary() { return auxiliary_; }  // (1) of routers, unweighted, summed over layers
  vec<int> unsound() { return unsound_; }                      // (1) not 0: some router's choices are none
  vec<T> open_gates() { return open_gates_; }                  // (1) tokens' mean chances to run a layer, summed
  /// On a backend that runs late, choices are looked at when the call of layers has ended.
  struct late_choice {
    routing<T> r;
    living_experts alive;
  };
  std::vector<late_choice>& late() { return late_; }

 private:
  template <class Record> static inline const char tag = 0;  // its address names the type
  struct link {
    const char* kind;
    const link* below;
  };
  template <class Record> struct node : link { Record record; };
  arena& memory_;
  vec<auxiliary_losses<T>> auxiliary_;
  vec<int> unsound_;
  vec<T> open_gates_;
  std::vector<late_choice> late_;
  const link* top_ = nullptr;
};

}  // namespace moeskip
