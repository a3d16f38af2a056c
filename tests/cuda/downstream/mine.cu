#include "mine.hpp"

#include <moeskip/cuda.cuh>

template struct moeskip::cuda_program<mine>;
template struct moeskip::cuda_program<by_the_host>;
template struct moeskip::cuda_loops<moeskip::bf16, tempered, leads>;
