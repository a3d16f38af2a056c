// What imbalance costs where experts are spread over p devices, E/p consecutive ones on each: all wait for the device
// with the most work.
//   load_d = Σ choices of the experts of device d      overload(p) = p · max_d load_d / Σ_d load_d − 1
// 0 where devices are equally loaded; 1 where a step takes twice the time that it could. With p = E it is
// max_violation.
//                       "MaxVio", Wang et al., arXiv:2408.15664; by device as in DeepSeek-V2, arXiv:2405.04434, 2.2.3
#pragma once

#include <algorithm>
#include <span>

#include "moeskip/base/check.hpp"

namespace moeskip {

/// choices (E) by expert. Device d of p holds the experts from ⌊d E/p⌋ to ⌊(d + 1) E/p⌋ − 1. 0 where nothing was
/// chosen. Throws config_error unless there are from 1 to E devices.
inline double overload(std::span<const long long> choices, int devices) {
  const long long E = static_cast<long long>(choices.size());
  MOESKIP_CHECK(config_error, devices >= 1 && devices <= E, "overload: expected from 1 to ", E, " devices for ", E,
                " experts, got ", devices);
  long long all = 0, most = 0;
  for (long long d = 0; d < devices; ++d) {
    long long load = 0;
    for (long long e = d * E / devices; e < (d + 1) * E / devices; ++e) load += choices[std::size_t(e)];
    all += load, most = std::max(most, load);
  }
  return all ? double(devices) * double(most) / double(all) - 1 : 0;
}

}  // namespace moeskip
