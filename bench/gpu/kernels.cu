// Kernels of the routers that the checks use.
#include "variants.hpp"

#include "moeskip/cuda.cuh"

template struct moeskip::cuda_program<tests::everything>;
template struct moeskip::cuda_routers<tests::sticky_router>;
