// The kernels of the target moeskip::cuda: every phase, and the routers that most models have. A variant with another router
// brings its kernels in a .cu of its own: moeskip/cuda.cuh.
#include "moeskip/cuda.cuh"
#include "moeskip/parts/router/sigmoid_top_k.hpp"
#include "moeskip/parts/router/top_k.hpp"

template struct moeskip::cuda_kernels<>;
template struct moeskip::cuda_routers<moeskip::router::top_k<1>, moeskip::router::top_k<2>, moeskip::router::top_k<4>,
                                      moeskip::router::top_k<8>, moeskip::router::sigmoid_top_k<8>>;
