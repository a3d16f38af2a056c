// An optimizer for the exits' own weights alone: the model that they leave stays as it is, bit for bit. Its state
// covers these weights only; gradients are computed for all, and their norm is what training.clip limits.
//   ms::training<V, ms::only_exits<ms::adamw>> options{.optimizer = {{.lr = 1e-3}}};
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "moeskip/concepts/optimizer.hpp"
#include "moeskip/model/weights.hpp"

namespace moeskip {

template <class O> struct only_exits : O {
  static constexpr std::string_view name = "only_exits";
  static constexpr bool moves_selection_biases = false;

  template <class B> struct on {
    index_t first;  // of the exits' weights, which stand together at the end of the block
    std::vector<tensor_info> tensors;
    typename O::template on<B> state;

    explicit on(const std::vector<tensor_info>& all) : first(start(all)), tensors(moved(all, first)), state(tensors) {}

    template <class F> void blocks(F&& f) { state.blocks(f); }

    using takes_together = on;
    static bool together(const only_exits& o, const tensor_info& a, const tensor_info& b) {
      if constexpr (TakesTogether<typename O::template on<B>>)
        return is_exit(a) == is_exit(b) && O::template on<B>::together(o, a, b);
      else return false;
    }
    void update(B& b, const only_exits& o, const tensor_info& tensor, vec<scalar_t<B>> w, vec<const scalar_t<B>> g,
                double rate, std::uint64_t t, double gradient_scale) {
      if (!is_exit(tensor)) return;
      tensor_info here = tensor;
      here.offset -= first;
      state.update(b, o, here, w, g, rate, t, gradient_scale);
    }

   private:
    static bool is_exit(const tensor_info& t) { return t.name.starts_with("model.exits."); }
    static index_t start(const std::vector<tensor_info>& all) {
      for (const tensor_info& t : all)
        if (is_exit(t)) return t.offset;
      fail<config_error>(
          "only_exits: expected exits with weights of their own (exit_head::own, exit_head::low_rank), "
          "got none");
    }
    static std::vector<tensor_info> moved(const std::vector<tensor_info>& all, index_t first) {
      std::vector<tensor_info> out;
      for (tensor_info t : all) {
        if (!is_exit(t)) continue;
        t.offset -= first;
        out.push_back(std::move(t));
      }
      return out;
    }
  };
  friend constexpr bool operator==(const only_exits&, const only_exits&) = default;
};

}  // namespace moeskip
