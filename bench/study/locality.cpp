// Routing locality: what each way to make neighbours share experts costs in bits per byte, and what it brings in growth.
// All without dropout and exit losses, against all_moe.cpp's baseline.
#include "study.hpp"

namespace {

using ms::router::biased;
using ms::router::segment;
using ms::router::segment_group;
using ms::router::smooth;
using ms::router::sticky;
using top_2 = ms::router::top_k<2>;

template <class R> struct routed : ms::variant { using router = R; };

template <class R> study::plan<routed<R>> by(const R& router, float balance = 0.1f) {
  study::plan<routed<R>> p = study::baseline<routed<R>>(study::all_moe);
  p.model.router = router;
  study::balance(p.model.router, balance);
  return p;
}

const study::known recipes[] = {
    {"segment_2", [] { return by(segment<top_2, 2>{}); }},
    {"segment_4", [] { return by(segment<top_2, 4>{}); }},
    {"segment_4_free", [] { return by(segment<top_2, 4, 1>{}); }},
    {"segment_4_above", [] { return by(segment<top_2, 4>{.from_layer = 4}); }},
    {"segment_2_late", [] { return by(segment<top_2, 2>{.from_progress = 0.8f}); }},
    {"segment_4_late", [] { return by(segment<top_2, 4>{.from_progress = 0.8f}); }},
    {"group_4", [] { return by(segment_group<top_2, 4, 4>{}); }},
    {"group_8", [] { return by(segment_group<top_2, 8, 4>{}); }},
    {"sticky_0.5", [] { return by(sticky<top_2>{.bonus = 0.5f}); }},
    {"sticky_1", [] { return by(sticky<top_2>{.bonus = 1}); }},
    {"sticky_2", [] { return by(sticky<top_2>{.bonus = 2}); }},
    {"smooth_1", [] { return by(smooth<top_2>{.change_loss = 1}); }},
    {"weakly_balanced", [] { return by(top_2{}, 0.01f); }},
    {"biased", [] { return by(biased<top_2>{}, 0); }},
    {"unbalanced", [] { return by(top_2{}, 0); }},
};

}  // namespace
