// Tokens that pass a layer by have chosen no experts there: past (S, C, K) says -1 of each row's token, so that the next
// one follows nobody.
#pragma once

#include "moeskip/ops/contract.hpp"
#include "moeskip/tensor/rows.hpp"

namespace moeskip {

struct note_none_t {
  static constexpr const char* name = "note_none";
  template <class B> void operator()(B& b, cube<int> past, const token_rows& rows) const {
    expect_shape(name, "rows.slot", rows.slot, rows.size());
    run_kernel<note_none_t>(b, past, rows);
  }
};
inline constexpr note_none_t note_none{};

template <> struct kernel<note_none_t, on_reference> {
  template <class B> static void run(B&, cube<int> past, const token_rows& rows) {
    for (index_t n = 0; n < rows.size(); ++n) past.plane(rows.slot[n])(rows.position[n], 0) = -1;
  }
};

}  // namespace moeskip
