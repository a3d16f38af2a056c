// Kernels of the routers that the checks use, and of loops on the device.
#include "variants.hpp"

#include "moeskip/cuda.cuh"
#include "moeskip/decode/exit_rule/fixed.hpp"
#include "moeskip/decode/exit_rule/max_probability.hpp"

template struct moeskip::cuda_program<tests::everything>;
template struct moeskip::cuda_routers<tests::sticky_router>;
template struct moeskip::cuda_loops<float, tests::plain::router, moeskip::exit_rule::fixed,
                                    moeskip::exit_rule::max_probability>;
template struct moeskip::cuda_loops<moeskip::bf16, tests::plain::router, moeskip::exit_rule::fixed,
                                    moeskip::exit_rule::max_probability>;
