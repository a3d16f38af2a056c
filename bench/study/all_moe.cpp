// Every layer MoE: the baseline, exit losses and layer dropout, expert dropout, all of it with a shared expert, that
// with gates before layers, and with routing that neighbours share; as yardsticks a model of half the depth and a dense
// one of equal active size, both trained alone.
#include "../../examples/models/models.hpp"
#include "study.hpp"

namespace {

using study::all_moe;
using study::baseline;
using study::plan;
using study::skipping;

struct plain : ms::variant {};
struct skip : ms::variant {
  using layer_dropout = ms::layer_dropout::exponential;
};
struct all_of_it : ms::variant {
  using router = ms::router::top_k<1>;
  using shared_expert = ms::shared_expert::always;
  using expert_dropout = ms::expert_dropout::bernoulli;
  using layer_dropout = ms::layer_dropout::exponential;
};
struct gated : all_of_it {
  using layer_skip = ms::layer_skip::gate;
};
struct dropping_experts : ms::variant {
  using expert_dropout = ms::expert_dropout::bernoulli;
};

const study::known recipes[] = {
    {"baseline", [] { return baseline<plain>(all_moe); }},
    {"skip", [] { return skipping<skip>(all_moe); }},
    {"expert_dropout",
     [] {
       plan<dropping_experts> p = baseline<dropping_experts>(all_moe);
       p.model.expert_dropout = {.p = 0.1f};
       return p;
     }},
    {"gated", [] { return study::everything<gated>(all_moe); }},
    {"everything", [] { return study::everything<all_of_it>(all_moe); }},
    {"everything_local", [] { return study::everything_local<models::all_moe>(all_moe); }},
    {"half_depth",
     [] {
       ms::sizes s = all_moe;
       s.layers /= 2;
       return baseline<plain>(s);
     }},
    {"dense",
     [] {
       ms::sizes s = all_moe;
       s.moe_every = 0, s.dense_ffn = 2 * s.ffn;
       return baseline<plain>(s);
     }},
};

}  // namespace
