// A router of one's own: the two best experts, from a softmax with a temperature τ. Below 1 tokens are more decided,
// above they spread.
//   p = softmax(logits / τ)   gate = softmax of the two best logits / τ, which is p_k / (p_1 + p_2)
// The functions see one token and touch nothing else, so every backend can run them.
#include "example.hpp"

namespace ms = moeskip;

struct tempered {
  static constexpr std::string_view name = "tempered";  // checkpoints remember it
  static constexpr int experts_per_token = 2;
  float temperature = 1.f;
  float balance_loss = 0.01f;  // keeps experts equally busy; optional

  template <class T> MOESKIP_HD void score(const ms::routed_token<T>& t) const {
    for (int e = 0; e < t.experts; ++e) t.probability[e] = t.logits[e] / T(temperature);
    ms::router::softmax_alive(t, t.probability);
  }
  template <class T> MOESKIP_HD void choose(const ms::routed_token<T>& t) const {
    ms::router::choose_best<2>(t, t.probability);
  }
  template <class T> MOESKIP_HD void weigh(const ms::routed_token<T>& t) const {
    for (int k = 0; k < 2; ++k) t.gate[k] = t.logits[t.chosen[k]] / T(temperature);
    ms::softmax(t.gate, t.gate, 2);
  }
  template <class T> MOESKIP_HD void backward(const ms::routed_token<T>& t, const T* dgate, T* dp, T* dlogits) const {
    ms::router::weigh_by_softmax_backward<2>(t, dgate, dlogits);
    ms::router::softmax_alive_backward(t, dp, dlogits);
    for (int e = 0; e < t.experts; ++e) dlogits[e] /= T(temperature);
  }
  template <class Self, class F> static constexpr void fields(Self& self, F&& f) {
    f("temperature", self.temperature), f("balance_loss", self.balance_loss);
  }
  friend constexpr bool operator==(const tempered&, const tempered&) = default;
};
static_assert(ms::Router<tempered>);

struct mine : ms::variant {
  using router = tempered;
};

int main(int argc, char** argv) {
  return example::run(argc, argv, [](const example::arguments& given) {
    const std::vector<int> tokens = ms::tokenizer::byte::encode(example::rhyme());
    for (const float temperature : {0.5f, 1.f, 2.f}) {
      ms::config<mine> config = example::small_config<mine>(given.tiny);
      config.router.temperature = temperature;
      ms::model<mine, ms::cpu<float>> model{config, ms::seed{42}};
      ms::random_windows batches(tokens, 2, 32, ms::seed{42});
      const ms::training<mine> options{.steps = given.tiny ? 5u : 100u, .optimizer = {.lr = 3e-3}};
      ms::trainer trainer(model, options);
      while (trainer.next_step() < options.steps) trainer.step(batches);

      example::print(ms::text("temperature ", temperature, ": ",
                              example::fixed(ms::evaluate(model, tokens, 32).back().bits_per_token, 3),
                              " bits per byte\n"));
    }
  });
}
