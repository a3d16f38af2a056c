// Routing locality: what each way to make neighbours share experts costs in bits per byte, and what it brings in
// growth. All without dropout and exit losses, against all_moe.cpp's baseline.
#include "study.hpp"

namespace {

using ms::router::biased;
using ms::router::segment;
using ms::router::segment_group;
using ms::router::smooth;
using ms::router::sticky;
using top_1 = ms::router::top_k<1>;
using top_2 = ms::router::top_k<2>;
// A single expert's gate must not be 1, or the router would learn nothing.
constexpr top_1 beside_shared{.renormalise = false};

template <class R> struct routed : ms::variant { using router = R; };

template <class R> study::plan<routed<R>> by(const R& router, float balance = 0.1f) {
  study::plan<routed<R>> p = study::baseline<routed<R>>(study::all_moe);
  p.model.router = router;
  study::innermost(p.model.router).balance_loss = balance;
  return p;
}

/// One expert for all tokens, and the router's among the others.
template <class R> struct shared : routed<R> { using shared_expert = ms::shared_expert::always; };

template <class R> study::plan<shared<R>> by_shared(const R& router) {
  ms::sizes s = study::all_moe;
  --s.experts;
  study::plan<shared<R>> p = study::baseline<shared<R>>(s);
  p.model.router = router;
  study::innermost(p.model.router).balance_loss = 0.1f;
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
    {"sticky_0.5_biased", [] { return by(biased<sticky<top_2>>{.base = {.bonus = 0.5f}, .bias_rate = 0.01f}); }},
    {"sticky_1_biased", [] { return by(biased<sticky<top_2>>{.base = {.bonus = 1}, .bias_rate = 0.01f}); }},
    {"smooth_1", [] { return by(smooth<top_2>{.change_loss = 1}); }},
    {"shared", [] { return by_shared(beside_shared); }},
    {"shared_sticky_1", [] { return by_shared(sticky<top_1>{.base = beside_shared, .bonus = 1}); }},
    {"shared_sticky_1_biased",
     [] { return by_shared(biased<sticky<top_1>>{.base = {.base = beside_shared, .bonus = 1}, .bias_rate = 0.01f}); }},
    {"shared_segment_2_late",
     [] { return by_shared(segment<top_1, 2>{.base = beside_shared, .from_progress = 0.8f}); }},
    {"weakly_balanced", [] { return by(top_2{}, 0.01f); }},
    {"biased", [] { return by(biased<top_2>{}, 0); }},
    {"biased_0.01", [] { return by(biased<top_2>{.bias_rate = 0.01f}, 0); }},
    {"unbalanced", [] { return by(top_2{}, 0); }},
};

}  // namespace
