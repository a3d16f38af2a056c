// Forward declarations: the only home of default template arguments.
#pragma once

#include "moeskip/base/config.hpp"
#include "moeskip/base/scalar.hpp"

namespace moeskip {

template <Scalar T = double> struct reference;
template <Storage W = float, class Isa = isa::native, Storage Product = float> struct cpu;
namespace driver {
struct device;
struct graph;
struct emulator;
}  // namespace driver
template <Storage W = float, class Driver = driver::device, Storage Product = W> struct cuda;

template <class V> struct config;
template <class V, class B> class model;

namespace curriculum {
struct all;
struct rotational;
}  // namespace curriculum
namespace depth {
struct uniform;
}
namespace over_time {
struct constant;
}
namespace expert_dropout {
template <class P, class Depth, class Time = over_time::constant> struct scheduled;
}
namespace layer_dropout {
template <class Depth, class Time = over_time::constant> struct by_depth;
}
namespace exit_rule {
struct max_probability;
}
namespace missing_kv {
struct propagate;
}
namespace decoder {
struct autoregressive;
template <class Rule = exit_rule::max_probability, class MissingKV = missing_kv::propagate> struct early_exit;
}  // namespace decoder
namespace draft {
struct lookup;
struct self;
template <class First = lookup, class Second = self> struct either;
}  // namespace draft
namespace acceptance {
struct exact;
}
namespace draft_length {
struct utility;
}
namespace speculative_decoder {
template <class Draft = draft::self, class Acceptance = acceptance::exact, class DraftLength = draft_length::utility>
struct compose;
}

}  // namespace moeskip
