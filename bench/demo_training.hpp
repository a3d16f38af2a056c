// The demo's training on a text of no meaning: what training benchmarks time.
#pragma once

#include <vector>

#include "../examples/demo/shape.hpp"

namespace bench {

namespace ms = moeskip;

/// Products of type P.
template <class P> struct demo_training {
  using B = ms::cpu<float, ms::isa::native, P>;
  demo::shape shape = demo::full();
  ms::model<demo::variant, B> model{shape.model, ms::seed{1}};
  ms::trainer<demo::variant, B> trainer{model, shape.training};
  std::vector<int> text = some_text();
  ms::random_windows data{text, shape.sequences, shape.length, ms::seed{2}};

  /// Of the next step: dropout makes steps of different size.
  double flop() {
    return ms::training_flops(model, shape.sequences, shape.length, trainer.exit_weights_now(), trainer.options().masks,
                              trainer.next_step());
  }
  void step() { trainer.step(data); }

 private:
  static std::vector<int> some_text() {
    std::vector<int> text(1 << 20);
    for (std::size_t i = 0; i < text.size(); ++i) text[i] = int(i * i / 91 % 256);
    return text;
  }
};

}  // namespace bench
