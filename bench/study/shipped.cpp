// The models of examples/models: half as many experts as those of the evidence, so that all four fit in 30 MB.
#include "../../examples/models/models.hpp"
#include "study.hpp"

namespace {

template <class V> study::plan<V> smaller(ms::sizes s) {
  s.experts /= 2;
  return study::everything_local<V>(s);
}

const study::known recipes[] = {
    {"all_moe", [] { return smaller<models::all_moe>(study::all_moe); }},
    {"every_4th", [] { return smaller<models::every_4th>(study::every_4th); }},
    // What the first is compared with: as large, as many experts for a token, the loss of the last layer alone.
    {"all_moe_baseline",
     [] {
       ms::sizes s = study::all_moe;
       s.experts /= 2;
       return study::baseline<models::all_moe_baseline>(s);
     }},
    // An eighth of their active weights.
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
                                              .dense_ffn = 144});
     }},
};

}  // namespace
