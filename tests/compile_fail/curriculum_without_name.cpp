// expect: moeskip: V::curriculum needs `static constexpr std::string_view name` and `layer_set enabled(const
#include "moeskip/moeskip.hpp"
namespace ms = moeskip;
struct mine : ms::variant {
  struct curriculum {
    ms::layer_set enabled(const ms::layer_set& exits, const ms::training_moment&) const { return exits; }
  };
};
constexpr auto size = sizeof(ms::trainer<mine, ms::reference<double>>);
