// Models of random weights on which decoding is timed.
#pragma once

#include "moeskip/moeskip.hpp"

namespace bench {

namespace ms = moeskip;

using weights_in_bf16 = ms::cpu<ms::bf16, ms::isa::native, ms::bf16>;  // and products

/// Lives in the caches: what a token costs is arithmetic and the start of parallel regions.
struct in_cache : ms::variant {};
inline constexpr ms::config<in_cache> in_cache_shape{
    .sizes =
        {.layers = 12, .dim = 128, .heads = 4, .kv_heads = 2, .ffn = 128, .experts = 16, .vocab = 256, .context = 512},
    .exits = ms::exits_every(2, 12)};

/// Larger than any cache: 280 MB of weights for a token.
struct in_memory : ms::variant {
  using router = ms::router::top_k<4>;
};
inline constexpr ms::config<in_memory> in_memory_shape{.sizes = {.layers = 12,
                                                                 .dim = 1024,
                                                                 .heads = 16,
                                                                 .kv_heads = 4,
                                                                 .ffn = 512,
                                                                 .experts = 32,
                                                                 .vocab = 32000,
                                                                 .context = 512},
                                                       .exits = ms::exits_every(2, 12)};
static_assert(ms::valid(in_cache_shape) && ms::valid(in_memory_shape));

}  // namespace bench
