// What calls to an observer become where there is none: absent_observer.sh compares the three functions' machine code.
// The calls are those of run_layers and the parts, written down once more; who calls for more must say so here.
#include "moeskip/cuda.hpp"
#include "moeskip/memory/tape.hpp"

namespace ms = moeskip;

using backend = ms::emulated_cuda<float>;  // on which a wait would be a call
using routing = ms::routing<float>;

namespace {

struct counter : ms::no_tape {
  using ms::no_tape::no_tape;
  void enter(backend& b, ms::stage) { ms::settle(b), ++stages; }
  void routed(int, const routing& r, const ms::token_rows&) { choices += r.chosen.size(); }
  void passed(int, const ms::token_rows& rows) { by += rows.size(); }
  long long stages = 0, choices = 0, by = 0;
};

template <class Tape> void pass(Tape& tape, backend& b, const routing& r, const ms::token_rows& rows) {
  tape.enter(b, ms::stage::layer_gate);
  tape.passed(1, rows);
  tape.entered(1, rows);
  tape.enter(b, ms::stage::attention);
  tape.enter(b, ms::stage::router);
  tape.enter(b, ms::stage::expert);
  if (tape.most_experts() < 8 || tape.asks() != ms::ask_ahead::nothing) ms::settle(b);
  tape.routed(1, r, rows);
}

}  // namespace

extern "C" {
void says_nothing(ms::no_tape&, backend&, const routing&, const ms::token_rows&) {}
void tells_nobody(ms::no_tape& tape, backend& b, const routing& r, const ms::token_rows& rows) {
  pass(tape, b, r, rows);
}
void tells_somebody(counter& tape, backend& b, const routing& r, const ms::token_rows& rows) { pass(tape, b, r, rows); }
}
