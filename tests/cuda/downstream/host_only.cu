// nvcc must refuse this: a mask for each token that only the host can draw.
#include <string_view>

#include <moeskip/cuda.cuh>

struct host_only {
  static constexpr std::string_view name = "host_only";
  static constexpr moeskip::mask_scope drawn_per() { return moeskip::mask_scope::token; }
  moeskip::expert_set survivors(const moeskip::mask_key&, int experts, int) const {
    return moeskip::expert_set::first(experts);
  }
  friend constexpr bool operator==(const host_only&, const host_only&) = default;
};
template struct moeskip::cuda_expert_dropout<host_only>;
