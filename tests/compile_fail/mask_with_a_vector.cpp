// expect: moeskip: expert dropout that draws for sequences or tokens travels to the GPU
#include <vector>

#include "moeskip/moeskip.hpp"

#include "moeskip/cuda.hpp"
namespace ms = moeskip;
struct listed {
  static constexpr std::string_view name = "listed";
  std::vector<int> dropped;
  ms::mask_scope drawn_per() const { return ms::mask_scope::token; }
  ms::expert_set survivors(const ms::mask_key&, int experts, int) const { return ms::expert_set::first(experts); }
  friend bool operator==(const listed&, const listed&) = default;
};
void run(ms::emulated_cuda<>& b, const listed& policy, const ms::token_rows& rows, ms::arena& memory) {
  ms::draw_living_experts(b, policy, {}, rows, 4, 2, memory);
}
