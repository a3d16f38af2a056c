// Kernels of the policies that the checks use, a user's among them, of loops on the device, and of an exit rule with a
// memory.
#include "downstream/mine.hpp"
#include "variants.hpp"

#include "moeskip/cuda.cuh"
#include "moeskip/decode/exit_rule/fixed.hpp"
#include "moeskip/decode/exit_rule/max_probability.hpp"
#include "moeskip/decode/exit_rule/patience.hpp"

template struct moeskip::cuda_program<tests::everything>;
template struct moeskip::cuda_program<mine>;
template struct moeskip::cuda_routers<tests::sticky_router>;
template struct moeskip::cuda_loops<float, tests::plain::router, moeskip::exit_rule::fixed,
                                    moeskip::exit_rule::max_probability>;
template struct moeskip::cuda_loops<moeskip::bf16, tests::plain::router, moeskip::exit_rule::fixed,
                                    moeskip::exit_rule::max_probability>;
template void moeskip::driver::device::each(moeskip::index_t,
                                            const moeskip::phase::ask_exit<moeskip::exit_rule::patience>&);
