// What this machine can do, measured in the same program: the best streaming read, and the peak of
// multiply-adds.
#pragma once

#include "measure.hpp"
#include "moeskip/eval/machine_limits.hpp"

namespace bench {

using moeskip::product_peak;
using moeskip::stream_read;

}  // namespace bench
