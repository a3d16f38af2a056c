// Workspace: memory that ops take their temporaries from, without a heap allocation (memory/arena.hpp models it).
#pragma once

#include "moeskip/base/config.hpp"
#include "moeskip/tensor/view.hpp"

namespace moeskip {

template <class W> concept Workspace = requires(W& w) {
  { w.template take<float>(index_t{2}, index_t{3}) } -> std::same_as<mat<float>>;  // uninitialised
  w.scope();                                                                       // returns what was taken since
};

}  // namespace moeskip
