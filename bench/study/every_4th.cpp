// MoE every 4th layer, the others dense: the baseline, and exit losses with all dropout and a shared expert; and a model
// small enough to draft for either.
#include "../../examples/models/models.hpp"
#include "study.hpp"

namespace {

struct plain : ms::variant {};
const study::known recipes[] = {
    {"every_4th_baseline", [] { return study::baseline<plain>(study::every_4th); }},
    {"every_4th_everything", [] { return study::everything<models::every_4th>(study::every_4th); }},
    {"draft",
     [] {
       return study::baseline<models::draft>({.layers = 3,
                                              .dim = 96,
                                              .heads = 3,
                                              .kv_heads = 1,
                                              .ffn = 96,
                                              .vocab = 256,
                                              .context = 256,
                                              .moe_every = 0,
                                              .dense_ffn = 192});
     }},
};

}  // namespace
