// Kernels of the router of examples/models, in the types of models.hpp, and of loops on the device. OLMoE's router is
// one of those that moeskip::cuda brings.
#include "moeskip/cuda.cuh"
#include "moeskip/decode/exit_rule/fixed.hpp"
#include "moeskip/decode/exit_rule/max_probability.hpp"
#include "moeskip/parts/router/biased.hpp"
#include "moeskip/parts/router/sticky.hpp"
#include "moeskip/parts/router/top_k.hpp"

namespace router = moeskip::router;
using shipped = router::biased<router::sticky<router::top_k<1>>>;
template struct moeskip::cuda_routers<shipped>;
template struct moeskip::cuda_loops<moeskip::bf16, shipped, moeskip::exit_rule::fixed,
                                    moeskip::exit_rule::max_probability>;
template struct moeskip::cuda_loops<moeskip::bf16, router::top_k<8>, moeskip::exit_rule::fixed>;  // presets::olmoe's
