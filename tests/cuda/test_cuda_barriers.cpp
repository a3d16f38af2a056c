// Every barrier of every phase is needed, or stands here with the reason why that cannot be shown; and what a GPU is
// asked to do (text_cases.hpp) meets every phase, and every barrier that a phase says it has.
#include <doctest/doctest.h>

#include <map>
#include <set>
#include <typeindex>

#include "models.hpp"
#include "scripts.hpp"
#include "text_cases.hpp"

using namespace tests;
namespace phase = ms::phase;
using ms::bf16;
using ms::emulated_cuda;

namespace {

/// A barrier that is needed, which the emulator cannot show.
struct unshown {
  std::string_view phase;
  int barrier;
  std::string_view why;
};
constexpr unshown without_proof[] = {
    {"append_attend", 3,
     "it keeps a block from reporting a split whose sums some of its threads have not written yet, and blocks are "
     "emulated one after the other"},
    {"project_route", 4,
     "it keeps a group of blocks from being reported before all threads of its last block have written its sums, and "
     "blocks are emulated one after the other"},
    {"follow", 0,
     "without it a step is read that is none yet: a number of no phase, at which nothing is done, or a jump to "
     "nowhere"},
};
bool has_no_proof(std::string_view phase, int barrier) {
  return std::any_of(std::begin(without_proof), std::end(without_proof),
                     [&](const unshown& u) { return u.phase == phase && u.barrier == barrier; });
}

/// Whether leaving a phase's barrier out shows: an error, or another result, of one of the cases in one of the orders.
template <class B, class... Cases> bool shows(std::string_view phase, int barrier, const Cases&... cases) {
  const double usual = std::same_as<typename B::product, bf16> ? 0.1 : 1e-3;
  const auto by = [&](const auto& c, std::uint64_t seed) {
    const auto expected = run<ms::reference<double>>(c, seed);
    for (int order = 0; order < 3; ++order) {
      const emulated e({.order = order, .without_in = phase, .without = barrier});
      try {
        if (!(difference(expected, run<B>(c, seed)) < usual)) return true;
      } catch (const ms::error&) {
        return true;
      }
    }
    return false;
  };
  for (std::uint64_t seed = 1; seed <= 6; ++seed)
    if ((by(cases, seed) || ...)) return true;
  return false;
}

// What shows that phase P's barriers are needed. One with barriers of which nothing does is a compile error.
template <class P> struct of {};
template <class W> bool needed(of<phase::product<W>>, int b) {
  return shows<emulated_cuda<W, float>>("product", b, linear_case{true});
}
template <class W> bool needed(of<phase::tensor_product<W>>, int b) {
  return shows<emulated_cuda<W, bf16>>("tensor_product", b, linear_case{true});
}
template <class W> bool needed(of<phase::norm_few_rows<W>>, int b) {
  return shows<emulated_cuda<W>>("norm_few_rows", b, norm_case{false});
}
template <class W> bool needed(of<phase::append_attend<W>>, int b) {
  return shows<emulated_cuda<W>>("append_attend", b, append_attend_case{true});
}
template <class W, class R> bool needed(of<phase::project_route<W, R>>, int b) {
  // One barrier is for routers whose warps choose for the rows that they scored, the next for all others.
  return shows<emulated_cuda<W, float>>("project_route", b, norm_route_case<ms::router::biased<sticky_router>>{false},
                                        norm_route_case<ms::router::biased<ms::router::noisy_top_k<2>>>{false});
}
bool needed(of<phase::balance_loss>, int b) {
  return shows<emulated_cuda<>>("balance_loss", b, moe_case<ms::router::top_k<2>>{true});
}
bool needed(of<phase::open_gates>, int b) { return shows<emulated_cuda<>>("open_gates", b, gates_case{true}); }
bool needed(of<phase::add_load_errors>, int b) {
  return shows<emulated_cuda<>>("add_load_errors", b, gates_case{true});
}
bool needed(of<phase::sort_choices>, int b) {
  return shows<emulated_cuda<>>("sort_choices", b, moe_case<ms::router::top_k<2>>{true});
}
bool needed(of<phase::cross_entropy>, int b) { return shows<emulated_cuda<>>("cross_entropy", b, loss_case{true}); }
bool needed(of<phase::distillation>, int b) {
  return shows<emulated_cuda<>>("distillation", b, distillation_case{true});
}
bool needed(of<phase::sum_of_squares>, int b) { return shows<emulated_cuda<>>("sum_of_squares", b, vector_case{true}); }
bool needed(of<phase::adamw_moments>, int b) { return shows<emulated_cuda<>>("adamw_moments", b, vector_case{true}); }
bool needed(of<phase::adamw_weights>, int b) { return shows<emulated_cuda<>>("adamw_weights", b, vector_case{true}); }
bool needed(of<phase::attend>, int b) { return shows<emulated_cuda<>>("attend", b, attend_case{true}); }
template <int D> bool needed(of<phase::attend_tiles<D>>, int b) {
  return shows<emulated_cuda<bf16>>("attend_tiles", b, long_attend_case{D > 64});
}
template <int D> bool needed(of<phase::attend_tiles_queries<D>>, int b) {
  return shows<emulated_cuda<bf16>>("attend_tiles_queries", b, long_attend_case{D > 64});
}
template <int D> bool needed(of<phase::attend_tiles_keys<D>>, int b) {
  return shows<emulated_cuda<bf16>>("attend_tiles_keys", b, long_attend_case{D > 64});
}
bool needed(of<phase::token_laws>, int b) { return shows<emulated_cuda<>>("token_laws", b, law_case{ways[4]}); }
bool needed(of<phase::next_token>, int b) { return shows<emulated_cuda<>>("next_token", b, draw_case{ways[1]}); }
bool needed(of<phase::draft_token>, int b) { return shows<emulated_cuda<>>("draft_token", b, draw_case{ways[1]}); }
bool needed(of<phase::judge_draft>, int b) {
  return shows<emulated_cuda<>>("judge_draft", b, judge_case{ways[1]}, judge_case{ways[4], drafted::impossible});
}
template <class... Lists> bool needed(of<phase::follow<Lists...>>, int b) {
  for (int order = 0; order < 3; ++order) {
    const emulated e({.order = order, .without_in = "follow", .without = b});
    if (followed(false) != followed_by_hand()) return true;
  }
  return false;
}

template <class P> constexpr int barriers_of() {
  if constexpr (requires { P::barriers; }) return P::barriers;
  return 0;
}

/// Calls f(of<P>) for the phases that have blocks: routers make one phase of many types.
template <class F> void each_block_phase(F&& f) {
  using router = everything::router;
  const auto all = [&]<class... P>(ms::phase_list<P...>) { (f(of<P>{}), ...); };
  all(ms::blocks_of_floats{}), all(ms::blocks_of_weights<float>{}), all(ms::blocks_of_weights<bf16>{});
  all(ms::blocks_of_router<router>{});
  all(ms::script_phases<bf16, router, ms::exit_rule::fixed>::blocks{});
  f(of<ms::loop_kernel<bf16, router, ms::exit_rule::fixed>>{});
}

}  // namespace

TEST_CASE("every barrier of a phase is needed, or there is a reason why that cannot be shown") {
  if (sanitized) return;  // what sanitizers look for is seen elsewhere, and they are slow
  std::set<std::type_index> done;
  std::size_t unproven = 0, proven = 0;
  each_block_phase([&]<class P>(of<P> one) {
    if constexpr (barriers_of<P>() > 0) {
      if (!done.insert(typeid(P)).second) return;
      for (int barrier = 0; barrier < P::barriers; ++barrier) {
        const std::string name = P::name;
        CAPTURE(name);
        CAPTURE(barrier);
        if (has_no_proof(P::name, barrier)) {
          ++unproven;
          continue;
        }
        CHECK(needed(one, barrier));
        ++proven;
      }
    }
  });
  CHECK(proven > 50);
  // append_attend and project_route are there twice, for weights in float and in bf16.
  CHECK(unproven == std::size(without_proof) + 2);
  CHECK_FALSE(shows<emulated_cuda<>>("product", 2, linear_case{true}));  // there is none: the unharmed phase passes
}

namespace {

/// The barriers that each phase met.
using phases_met = std::map<std::type_index, std::set<int>>;
phases_met& met() {
  static phases_met all;
  return all;
}

template <class P> struct watched_block : ms::emulated_block {
  explicit watched_block(const ms::emulated_block& b) : ms::emulated_block(b) {}
  void sync(int barrier) const { met()[typeid(P)].insert(barrier), ms::emulated_block::sync(barrier); }
};
template <class P> struct watched {
  static constexpr const char* name = P::name;
  P made;
  void operator()(const ms::emulated_block& b) const { made(watched_block<P>(b)); }
};
/// The emulator, which notes whom it meets.
struct watching : ms::driver::emulator {
  template <class P> static void each(ms::index_t n, const P& one) {
    met()[typeid(P)], ms::driver::emulator::each(n, one);
  }
  template <class P> static void launch(const ms::launch_shape& shape, const P& one) {
    met()[typeid(P)], ms::driver::emulator::launch(shape, watched<P>{one});
  }
};

template <class B, class Case> void meet(const Case& c, const std::string& what, double limit) {
  CAPTURE(what);
  CHECK(difference(run<ms::reference<double>>(c, 1), run<B>(c, 1)) < limit);
}
template <class W, class Product> void meet_all() {
  each_gpu_case([](const auto& c, const std::string& what, const limits& l) {
    const double limit = std::same_as<Product, bf16> ? l.tensor_cores : l.sums;
    if (limit > 0) meet<ms::cuda<W, watching, Product>>(c, what, limit);
  });
}

}  // namespace

TEST_CASE("what a GPU is asked to do is right on the emulator, and meets every phase and the barriers that it says") {
  meet_all<float, float>(), meet_all<bf16, float>(), meet_all<bf16, bf16>();
  meet<ms::cuda<float, watching, bf16>>(rounded_case{}, "products of bf16's numbers", 3e-6);
  {
    const emulated e({.gemm = true});  // for which factors are converted
    meet<ms::cuda<bf16, watching, bf16>>(linear_case{true}, "by a BLAS", 0.1);
    meet<ms::cuda<float, watching, bf16>>(linear_case{true}, "by a BLAS", 0.1);
    meet<ms::cuda<bf16, watching, float>>(linear_case{true}, "by a BLAS", 3e-5);
  }
  const auto one = [&]<class P>(of<P>) {
    const std::string name = P::name;
    CAPTURE(name);
    const auto found = met().find(typeid(P));
    CHECK_MESSAGE(found != met().end(), "no case meets it");
    if (found == met().end()) return;
    std::set<int> all;
    for (int b = 0; b < barriers_of<P>(); ++b) all.insert(b);
    CHECK_MESSAGE(found->second == all, "it has other barriers than it says, or no case meets them all");
  };
  const auto each = [&]<class... P>(ms::phase_list<P...>) { (one(of<P>{}), ...); };
  each(ms::each_of_floats{}), each(ms::each_of_weights<float>{}), each(ms::each_of_weights<bf16>{});
  each(ms::blocks_of_floats{}), each(ms::blocks_of_weights<float>{}), each(ms::blocks_of_weights<bf16>{});
  each(ms::each_of_router<sticky_router>{}), each(ms::blocks_of_router<everything::router>{});
  each(ms::each_of_dropout<ms::expert_dropout::bernoulli>{}), each(ms::each_of_dropout<without_one>{});
  using namespace ms::exit_rule;
  each(ms::phase_list<phase::ask_exit<fixed>, phase::ask_exit<max_probability>, phase::ask_exit<patience>>{});
  // What a loop may be made of is, one by one, right too.
  using of_loops = ms::script_phases<bf16, everything::router, fixed>;
  each(of_loops::elements{}), each(of_loops::blocks{});
}
