// The models of examples/models: half as many experts as those of the evidence, so that all three fit in 20 MB.
#include "../../examples/models/models.hpp"
#include "study.hpp"

namespace {

template <class V> study::plan<V> smaller(ms::sizes s) {
  s.experts /= 2;
  return study::everything<V>(s);
}

const study::known recipes[] = {
    {"all_moe", [] { return smaller<models::all_moe>(study::all_moe); }},
    {"every_4th", [] { return smaller<models::every_4th>(study::every_4th); }},
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
