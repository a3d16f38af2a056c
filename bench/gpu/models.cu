// Kernels of the router of examples/models, in the types of models.hpp.
#include "moeskip/cuda.cuh"
#include "moeskip/parts/router/biased.hpp"
#include "moeskip/parts/router/sticky.hpp"
#include "moeskip/parts/router/top_k.hpp"

namespace router = moeskip::router;
template struct moeskip::cuda_routers<router::biased<router::sticky<router::top_k<1>>>>;
