// All ops that look for a kernel, and which of them a backend leaves to the family that it falls back to. norm_linear,
// its backward, norm_route and append_attend have no plain loops: where no family has a kernel for them they are made of
// other ops of the list.
#pragma once

#include <string>

#include "moeskip/ops/adamw.hpp"
#include "moeskip/ops/add_bias.hpp"
#include "moeskip/ops/add_load_errors.hpp"
#include "moeskip/ops/add_rows.hpp"
#include "moeskip/ops/append_attend.hpp"
#include "moeskip/ops/attend.hpp"
#include "moeskip/ops/cross_entropy.hpp"
#include "moeskip/ops/dispatch.hpp"
#include "moeskip/ops/distillation.hpp"
#include "moeskip/ops/draw_survivors.hpp"
#include "moeskip/ops/embed.hpp"
#include "moeskip/ops/experts.hpp"
#include "moeskip/ops/gate_rows.hpp"
#include "moeskip/ops/gated_swiglu.hpp"
#include "moeskip/ops/growing_text.hpp"
#include "moeskip/ops/layer_gates.hpp"
#include "moeskip/ops/linear.hpp"
#include "moeskip/ops/mask_outputs.hpp"
#include "moeskip/ops/norm_groups.hpp"
#include "moeskip/ops/norm_linear.hpp"
#include "moeskip/ops/norm_route.hpp"
#include "moeskip/ops/note_none.hpp"
#include "moeskip/ops/rms_norm.hpp"
#include "moeskip/ops/rope.hpp"
#include "moeskip/ops/route.hpp"
#include "moeskip/ops/select_rows.hpp"
#include "moeskip/ops/swiglu.hpp"
#include "moeskip/ops/token_law.hpp"
#include "moeskip/ops/vector.hpp"

namespace moeskip {

template <class... Ops> struct op_list {};

using all_ops =
    op_list<embed_t, embed_backward_t, rms_norm_t, rms_norm_backward_t, linear_t, linear_backward_t, norm_linear_t,
            norm_linear_backward_t, norm_groups_t, norm_groups_backward_t, add_bias_t, add_bias_backward_t,
            rope_append_t, rope_append_backward_t, attend_t, attend_backward_t, append_attend_t, route_t,
            route_backward_t, balance_loss_t, add_load_errors_t, sort_choices_t, norm_route_t, draw_survivors_t,
            mask_outputs_t, experts_t, experts_backward_t, swiglu_t, swiglu_backward_t, gate_rows_t,
            gate_rows_backward_t, gated_swiglu_t, add_rows_t, cross_entropy_t, distillation_t, gather_rows_t,
            scatter_rows_t, note_none_t, open_gates_t, pass_gates_t, pass_gates_backward_t, accumulate_t, copy_into_t,
            combine_t, fill_with_t, sum_of_squares_t, store_weights_t, adamw_update_t>;

/// What loops of decoding on a device are made of beside. A host that decodes needs none of them.
using loop_ops = op_list<token_laws_t, embed_text_t, next_token_t, draft_token_t, judge_draft_t, ask_exit_t>;

/// Names of the ops that B runs with another family's kernel, separated by spaces.
template <class B> std::string fallbacks() {
  std::string names;
  [&]<class... Ops>(op_list<Ops...>) {
    ((runs_on<Ops, B> || !has_kernel<Ops, B> ? void() : void(names += text(names.empty() ? "" : " ", Ops::name))), ...);
  }(all_ops{});
  return names;
}

}  // namespace moeskip
