// Which kernels a program needs: all phases, once for each type of weights, and those that are made from a variant's
// router and expert dropout.
#pragma once

#include <type_traits>

#include "moeskip/backend/cuda/adamw.hpp"
#include "moeskip/backend/cuda/append_attend.hpp"
#include "moeskip/backend/cuda/attend.hpp"
#include "moeskip/backend/cuda/elementwise.hpp"
#include "moeskip/backend/cuda/experts_backward.hpp"
#include "moeskip/backend/cuda/follow.hpp"
#include "moeskip/backend/cuda/gemm.hpp"
#include "moeskip/backend/cuda/growing_text.hpp"
#include "moeskip/backend/cuda/layer_gates.hpp"
#include "moeskip/backend/cuda/masks.hpp"
#include "moeskip/backend/cuda/norm_route.hpp"
#include "moeskip/backend/cuda/projection.hpp"
#include "moeskip/backend/cuda/rope.hpp"
#include "moeskip/backend/cuda/route.hpp"
#include "moeskip/backend/cuda/token_law.hpp"

namespace moeskip {

/// Phases of numbers that each thread makes by itself.
template <class W> using each_of_weights = phase_list<phase::embed<W>, phase::embed_text<W>, phase::add_bias<W>>;
using each_of_floats =
    phase_list<phase::embed_backward, phase::gather_rows, phase::scatter_rows, phase::swiglu, phase::swiglu_backward,
               phase::gate_rows, phase::note_none, phase::combine, phase::accumulate, phase::fill_with,
               phase::pass_gates, phase::gain_gradient, phase::sum_of_rows, phase::rope_append,
               phase::rope_append_backward, phase::mask_outputs, phase::expert_act, phase::add_experts,
               phase::dropped_gates, phase::adamw, phase::column_sums, phase::add_rows, phase::gated_swiglu,
               phase::group_gain_gradient, phase::converted<bf16, float>, phase::converted<float, bf16>,
               phase::converted<float, float>>;
template <class R> using each_of_router = phase_list<phase::route_backward<R>>;
/// None where one set is drawn for all rows of a step: by the host.
template <class P> using each_of_dropout =
    std::conditional_t<detail::has_scope<P>, phase_list<phase::draw_survivors<P>>, phase_list<>>;

/// Phases of threads that work together.
template <class R> using blocks_of_router =
    phase_list<phase::route<R>, phase::project_route<float, R>, phase::project_route<bf16, R>>;
template <class W> using blocks_of_weights =
    phase_list<phase::rms_norm<W>, phase::rms_norm_backward<W>, phase::few_rows<W>, phase::norm_few_rows<W>,
               phase::product<W>, phase::tensor_product<W>, phase::expert_units<W>, phase::experts_down<W>,
               phase::norm_groups<W>, phase::norm_groups_backward<W>, phase::append_attend<W>>;
using blocks_of_floats =
    phase_list<phase::sum_of_squares, phase::adamw_moments, phase::adamw_weights, phase::gate_rows_backward,
               phase::open_gates, phase::pass_gates_backward, phase::note_choices, phase::balance_loss,
               phase::add_load_errors, phase::sort_choices, phase::cross_entropy, phase::distillation, phase::attend,
               phase::attend_tiles<64>, phase::attend_tiles<128>, phase::attend_tiles_queries<64>,
               phase::attend_tiles_queries<128>, phase::attend_tiles_keys<64>, phase::attend_tiles_keys<128>,
               phase::attend_backward_queries, phase::attend_backward_keys, phase::expert_act_backward,
               phase::group_scales, phase::token_laws, phase::next_token, phase::draft_token, phase::judge_draft>;

/// What a loop of decoding on the device may be made of: few rows of weights W, routed by Router, that leave by ExitRule.
template <class W, class Router, class ExitRule> struct script_phases {
  using elements = phase_list<phase::embed<W>, phase::embed_text<W>, phase::add_bias<W>, phase::ask_exit<ExitRule>,
                              phase::gather_rows, phase::scatter_rows, phase::swiglu, phase::gate_rows,
                              phase::note_none, phase::combine, phase::accumulate, phase::rope_append, phase::add_rows>;
  using blocks =
      phase_list<phase::rms_norm<W>, phase::few_rows<W>, phase::norm_few_rows<W>, phase::project_route<W, Router>,
                 phase::route<Router>, phase::expert_units<W>, phase::experts_down<W>, phase::norm_groups<W>,
                 phase::note_choices, phase::sort_choices, phase::append_attend<W>, phase::token_laws,
                 phase::next_token, phase::draft_token, phase::judge_draft>;
};
/// The kernel that follows such a script.
template <class W, class Router, class ExitRule> using loop_kernel =
    phase::follow<typename script_phases<W, Router, ExitRule>::elements,
                  typename script_phases<W, Router, ExitRule>::blocks>;

}  // namespace moeskip
