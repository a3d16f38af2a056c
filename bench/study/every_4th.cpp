// MoE every 4th layer, the others dense: the baseline, and exit losses with all dropout, a shared expert and routing that
// neighbours share.
#include "../../examples/models/models.hpp"
#include "study.hpp"

namespace {

struct plain : ms::variant {};
const study::known recipes[] = {
    {"every_4th_baseline", [] { return study::baseline<plain>(study::every_4th); }},
    {"every_4th_local", [] { return study::everything_local<models::every_4th>(study::every_4th); }},
};

}  // namespace
