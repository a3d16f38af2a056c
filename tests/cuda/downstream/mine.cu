#include "mine.hpp"

#include <moeskip/cuda.cuh>

template struct moeskip::cuda_program<mine>;
