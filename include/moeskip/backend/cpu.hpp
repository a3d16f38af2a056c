// The CPU backend: SIMD kernels for the ops that cost time. Ops without one here run the reference loops; which ones
// those may be is pinned by a test.
#pragma once

#include "moeskip/backend/cpu/attend.hpp"
#include "moeskip/backend/cpu/cross_entropy.hpp"
#include "moeskip/backend/cpu/distillation.hpp"
#include "moeskip/backend/cpu/elementwise.hpp"
#include "moeskip/backend/cpu/experts.hpp"
#include "moeskip/backend/cpu/experts_backward.hpp"
#include "moeskip/backend/cpu/gated_swiglu.hpp"
#include "moeskip/backend/cpu/layer_gates.hpp"
#include "moeskip/backend/cpu/linear.hpp"
#include "moeskip/backend/cpu/masks.hpp"
#include "moeskip/backend/cpu/projection.hpp"
#include "moeskip/backend/cpu/rms_norm.hpp"
#include "moeskip/backend/cpu/rope.hpp"
#include "moeskip/backend/cpu/route.hpp"
