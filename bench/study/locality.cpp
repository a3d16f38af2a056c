// Routing locality: what each way to make neighbours share experts costs in bits per byte, and what it brings in growth.
// All without dropout and exit losses, against all_moe.cpp's baseline.
#include "study.hpp"

namespace {

using ms::router::biased;
using ms::router::segment;
using ms::router::smooth;
using ms::router::sticky;
using top_2 = ms::router::top_k<2>;

template <class R> struct routed : ms::variant { using router = R; };

template <class R> study::plan<routed<R>> by(const R& router) {
  study::plan<routed<R>> p = study::baseline<routed<R>>(study::all_moe);
  p.model.router = router;
  return p;
}

const study::known recipes[] = {
    {"segment_2", [] { return by(segment<top_2, 2>{}); }},
    {"segment_4", [] { return by(segment<top_2, 4>{}); }},
    {"segment_4_free", [] { return by(segment<top_2, 4, 1>{}); }},
    {"segment_4_above", [] { return by(segment<top_2, 4>{.from_layer = 4}); }},
    {"sticky_0.5", [] { return by(sticky<top_2>{.bonus = 0.5f}); }},
    {"sticky_1", [] { return by(sticky<top_2>{.bonus = 1}); }},
    {"sticky_2", [] { return by(sticky<top_2>{.bonus = 2}); }},
    {"smooth_1", [] { return by(smooth<top_2>{.change_loss = 1}); }},
    {"biased", [] { return by(biased<top_2>{.base = {.balance_loss = 0}}); }},
    {"unbalanced", [] { return by(top_2{.balance_loss = 0}); }},
};

}  // namespace
