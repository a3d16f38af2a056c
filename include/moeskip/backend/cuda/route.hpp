// Routing: the router's per-token functions, as they stand in its header, run by a warp a token, whose lanes share them
// if the router knows of lanes. One that looks at the token before chooses for a sequence's run of rows in order.
#pragma once

#include <cstdint>

#include "moeskip/backend/cuda/backend.hpp"
#include "moeskip/backend/cuda/parts_of_rows.hpp"
#include "moeskip/ops/add_load_errors.hpp"
#include "moeskip/ops/growing_text.hpp"
#include "moeskip/ops/route.hpp"

namespace moeskip {

namespace phase {

/// The steps of a router, one after the other unless each row can be done without the others.
enum class routing_step { score, choose, weigh, all };

template <class R> struct route {
  static constexpr const char* name = "route";
  static constexpr bool in_order = follows_previous<R>;  // choices are
  moeskip::routing<float> r;
  mat<const float> logits;
  R router;
  routing_call<float> call;
  routing_step step = routing_step::all;

  template <class Block> MOESKIP_HD void operator()(const Block& b) const { run(b, step, call.bias); }
  template <class Block> MOESKIP_HD void run(const Block& b, routing_step which, vec<const float> bias) const {
    if (!made_by_warps<R> && b.lane() != 0) return;
    for (index_t n = b.block() * b.warps() + b.warp(); n < logits.rows(); n += b.blocks() * b.warps()) {
      if (which == routing_step::score || which == routing_step::all) score(b, n, bias);
      if constexpr (ChoosesRows<R>) continue;
      if (which == routing_step::choose || which == routing_step::all) choose(b, n, bias);
      if (which == routing_step::weigh || which == routing_step::all) weigh(b, n, bias);
    }
  }

 private:
  template <class Block> MOESKIP_HD routed_token<float> token(const Block& b, index_t n, vec<const float> bias,
                                                              noise_key& noise, bool follows_sound) const {
    routed_token<float> t = detail::token_at(call, r, logits, n, noise);
    t.bias = bias.data();
    if constexpr (made_by_warps<R>) t.by = b.lanes();
    if (!follows_sound) t.previous = nullptr;
    return t;
  }
  template <class Block> MOESKIP_HD void score(const Block& b, index_t n, vec<const float> bias) const {
    noise_key noise;
    router::score<float>(router, token(b, n, bias, noise, false));
  }
  /// That of a row, or, where it leads a run whose rows follow each other, of them all.
  template <class Block> MOESKIP_HD void choose(const Block& b, index_t n, vec<const float> bias) const {
    noise_key noise;
    if (in_order && call.rows.follows(n)) return;
    router::choose<float>(router, token(b, n, bias, noise, true));
    while (in_order && call.rows.follows(++n)) {
      const bool follows_sound = sound(n - 1);
      router::choose<float>(router, token(b, n, bias, noise, follows_sound));
    }
  }
  template <class Block> MOESKIP_HD void weigh(const Block& b, index_t n, vec<const float> bias) const {
    noise_key noise;
    if (sound(n)) router::weigh<float>(router, token(b, n, bias, noise, false));
  }
  /// Whether all choices of a row are experts. If not, nobody weighs them or follows them: the host will complain.
  MOESKIP_HD bool sound(index_t n) const {
    for (const int e : r.chosen.row(n))
      if (e < 0 || e >= r.probability.cols()) return false;
    return true;
  }
};

template <class R> struct route_backward {
  static constexpr const char* name = "route_backward";
  mat<float> dlogits, dprobability;  // (N, E · logits_per_expert) (N, E)
  mat<const float> dgate, logits;
  moeskip::routing<float> r;
  R router;
  routing_call<float> call;
  auxiliary_weights weights;
  index_t following;
  MOESKIP_HD void operator()(index_t n) const {
    kernel<route_backward_t, on_reference>::row(dlogits, dgate, logits, r, router, call, weights, following, n,
                                                dprobability.row(n));
  }
};

/// load (E), a warp each, and the memory of the choices.
struct note_choices {
  static constexpr const char* name = "note_choices";
  moeskip::routing<float> r;
  token_rows rows;
  cube<int> past;
  int* bad = nullptr;         // becomes bad_choice() of an expert, where a row's choices are not different ones
  living_experts alive = {};  // that may be chosen; no sets: all
  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    for (index_t n = b.block() * b.threads() + b.thread(); bad && n < r.chosen.rows(); n += b.blocks() * b.threads())
      if (const int code = bad_in(n)) *bad = code;
    const index_t choices = r.chosen.size(), K = r.chosen.cols();
    for (index_t c = b.block() * b.threads() + b.thread(); past.size() && c < choices; c += b.blocks() * b.threads())
      past.plane(rows.slot[c / K])(rows.position[c / K], c % K) = expert(c);
    for (index_t item = b.block() * b.warps() + b.warp(); item < r.load.size(); item += b.blocks() * b.warps()) {
      int mine = 0, all = 0;
      for (index_t c = b.lane(); c < choices; c += 32) {
        const int e = expert(c);
        mine += e == item, all += e >= 0;
      }
      const float own = b.warp_sum(float(mine)), of = b.warp_sum(float(all));  // whole numbers below 2^24
      if (b.lane() == 0) r.load[item] = of > 0 ? own / of : 0.f;
    }
  }

 private:
  /// 0 where row n's choices are different experts that it may choose.
  MOESKIP_HD int bad_in(index_t n) const {
    const vec<const int> chosen = r.chosen.row(n);
    for (index_t k = 0; k < chosen.size(); ++k) {
      if (chosen[k] < 0 || chosen[k] >= r.load.size()) return growth::bad_choice(chosen[k]);
      if (alive.sets.size() && !alive.of(n).contains(chosen[k])) return growth::bad_choice(chosen[k]);
      for (index_t j = 0; j < k; ++j)
        if (chosen[j] == chosen[k]) return growth::bad_choice(chosen[k]);
    }
    return 0;
  }
  MOESKIP_HD int expert(index_t c) const {
    const int e = r.chosen.data()[c];
    return e < r.load.size() ? e : -1;
  }
};

struct balance_loss {
  static constexpr const char* name = "balance_loss";
  static constexpr int barriers = 1;
  vec<auxiliary_losses<float>> sum;  // (1)
  moeskip::routing<float> r;
  mat<const float> logits;
  routing_call<float> call;
  index_t following;
  parts_of_rows<3> parts;

  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    auxiliary_losses<float> own;
    for_rows(b, r.probability.rows(),
             [&](index_t n) { own += kernel<balance_loss_t, on_reference>::row(r, logits, call, following, n); });
    float sums[3] = {own.balance, own.z, own.change};
    parts.add(b, sums, 0, [&](const float(&all)[3]) { sum[0] += auxiliary_losses<float>{all[0], all[1], all[2]}; });
  }
};

/// d (E) of experts that some row could choose; one block.
struct add_load_errors {
  static constexpr const char* name = "add_load_errors";
  static constexpr int barriers = 2, threads = 256;
  vec<float> d;
  vec<const float> load;
  living_experts alive;

  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    // A thread joins its share of one word of all sets; then one thread a word the shares.
    auto *const shares = reinterpret_cast<std::uint64_t*>(b.shared()), *const all = shares + b.threads();
    const int t = b.thread(), word = t % words, step = b.threads() / words;
    std::uint64_t share = 0;
    for (index_t n = t / words; n < alive.sets.size(); n += step) share |= alive.sets[n].words[word];
    shares[t] = share;
    b.sync(0);
    if (t < words) {
      std::uint64_t joined = 0;
      for (int i = t; i < b.threads(); i += words) joined |= shares[i];
      all[t] = joined;
    }
    b.sync(1);
    expert_set living;
    for (int w = 0; w < words; ++w) living.words[w] = all[w];
    const float mean = 1 / float(living.size());
    for (index_t e = t; e < d.size(); e += b.threads())
      if (living.contains(int(e))) d[e] += load[e] - mean;
  }
  static launch_shape shape() { return {1, threads, 2 * (threads + words)}; }

 private:
  static constexpr int words = int(sizeof(expert_set) / sizeof(std::uint64_t));
};

}  // namespace phase

namespace detail {

/// A routing call with its lists where the device sees them.
template <class Call> routing_call<float> listed_call(const routing_call<float>& c) {
  routing_call<float> call = c;
  call.rows = Call::listed(c.rows);
  call.alive.sets = Call::seen_or_listed(c.alive.sets);
  Call::seen(c.past), Call::seen(c.bias), Call::seen(c.unsound);
  return call;
}
/// What notes the choices, and says of some that they are none where anyone asks.
template <class Call> phase::note_choices noting(const routing<float>& r, const routing_call<float>& here) {
  if (int* bad = Call::bad_choices()) return {r, here.rows, here.past, bad};
  return {r, here.rows, here.past, here.unsound.data(), here.alive};
}
template <class Call> void expect_seen(const routing<float>& r) {
  Call::seen(r.probability), Call::seen(r.chosen), Call::seen(r.gate), Call::seen(r.load);
}

}  // namespace detail

template <> struct kernel<route_t, on_cuda> {
  template <class B, class R>
  static void run(B&, const routing<float>& r, mat<const float> logits, const R& router, const routing_call<float>& c) {
    using call = detail::device_call<route_t, B>;
    detail::expect_seen<call>(r);
    const routing_call<float> here = detail::listed_call<call>(c);
    const auto ask = [&](phase::routing_step step) {
      call::launch(detail::warp_each(logits.rows()), phase::route<R>{r, call::seen(logits), router, here, step});
    };
    // A script does not know its rows' positions yet.
    if (phase::route<R>::in_order && (script_steps::open() || detail::following(c.rows) > 0))
      ask(phase::routing_step::score), ask(phase::routing_step::choose), ask(phase::routing_step::weigh);
    else ask(phase::routing_step::all);
    if constexpr (!ChoosesRows<R>) call::launch(detail::warp_each(r.load.size()), detail::noting<call>(r, here));
  }
};

template <> struct kernel<route_backward_t, on_cuda> {
  template <class B, class R, class Memory>
  static void run(B&, mat<float> dlogits, mat<const float> dgate, mat<const float> logits, const routing<float>& r,
                  const R& router, const routing_call<float>& c, const auxiliary_weights& weights, Memory&) {
    using call = detail::device_call<route_backward_t, B>;
    const auto scope = call::scratch().scope();
    const mat<float> dprobability = call::scratch().template take<float>(logits.rows(), r.probability.cols());
    detail::expect_seen<call>(r);
    call::each(logits.rows(), phase::route_backward<R>{call::seen(dlogits), dprobability, call::seen(dgate),
                                                       call::seen(logits), r, router, detail::listed_call<call>(c),
                                                       weights, weights.change != 0 ? detail::following(c.rows) : 0});
  }
};

template <> struct kernel<balance_loss_t, on_cuda> {
  template <class B> static void run(B&, vec<auxiliary_losses<float>> sum, const routing<float>& r,
                                     mat<const float> logits, const routing_call<float>& c) {
    using call = detail::device_call<balance_loss_t, B>;
    const auto scope = call::scratch().scope();
    const launch_shape shape = detail::blocks_of_rows<3>(r.probability.rows());
    detail::expect_seen<call>(r);
    call::launch(shape, phase::balance_loss{call::seen(sum), r, call::seen(logits), detail::listed_call<call>(c),
                                            detail::following(c.rows), detail::parts_for<call, 3>(shape)});
  }
};

template <> struct kernel<add_load_errors_t, on_cuda> {
  template <class B> static void run(B&, vec<float> d, vec<const float> load, const living_experts& alive) {
    using call = detail::device_call<add_load_errors_t, B>;
    call::launch(phase::add_load_errors::shape(),
                 phase::add_load_errors{call::seen(d), call::seen(load), {call::seen_or_listed(alive.sets)}});
  }
};

}  // namespace moeskip
