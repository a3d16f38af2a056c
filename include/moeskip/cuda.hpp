// The CUDA backend as plain C++ sees it: ms::cuda<ms::bf16> in place of ms::cpu<ms::bf16>, and ms::emulated_cuda<>,
// which runs the same phases on the host. No CUDA header is behind it. A program that uses ms::cuda links kernels,
// which one .cu makes: cuda.cuh, and the CMake helper moeskip_add_cuda.
#pragma once

#include "moeskip/backend/cuda/adamw.hpp"
#include "moeskip/backend/cuda/append_attend.hpp"
#include "moeskip/backend/cuda/attend.hpp"
#include "moeskip/backend/cuda/attend_tiles.hpp"
#include "moeskip/backend/cuda/backend.hpp"
#include "moeskip/backend/cuda/device.hpp"
#include "moeskip/backend/cuda/dispatch.hpp"
#include "moeskip/backend/cuda/elementwise.hpp"
#include "moeskip/backend/cuda/emulator.hpp"
#include "moeskip/backend/cuda/experts.hpp"
#include "moeskip/backend/cuda/experts_backward.hpp"
#include "moeskip/backend/cuda/follow.hpp"
#include "moeskip/backend/cuda/fragments.hpp"
#include "moeskip/backend/cuda/gemm.hpp"
#include "moeskip/backend/cuda/growing_text.hpp"
#include "moeskip/backend/cuda/linear.hpp"
#include "moeskip/backend/cuda/norm_route.hpp"
#include "moeskip/backend/cuda/program.hpp"
#include "moeskip/backend/cuda/projection.hpp"
#include "moeskip/backend/cuda/rope.hpp"
#include "moeskip/backend/cuda/route.hpp"
#include "moeskip/backend/cuda/rowwise.hpp"
#include "moeskip/backend/cuda/tensor_product.hpp"
#include "moeskip/backend/cuda/token_law.hpp"
