// What the library is given that makes no sense (policies, files, options, weights, batches) comes back as an
// exception that says so: nothing aborts, nothing is read out of bounds, nothing is half changed.
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <climits>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>

#include "moeskip/model/checkpoint.hpp"
#include "tiny.hpp"
#include "watched_new.hpp"

// The largest single allocation, in bytes: absurd sizes in a file must be refused before memory is taken for them.
namespace {
std::atomic<std::size_t> largest{0};
}
void tests::on_allocation(std::size_t bytes) {
  for (std::size_t seen = largest; seen < bytes && !largest.compare_exchange_weak(seen, bytes);) {}
  if (bytes > std::size_t{1} << 30) throw std::bad_alloc();  // a small machine: no test takes a gigabyte
}

using namespace tests;
namespace fs = std::filesystem;

namespace bad_policies {

struct out_of_order : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// top_k<2> until it is told to misbehave.
struct moody_router {
  static constexpr std::string_view name = "moody";
  static constexpr int experts_per_token = 2;
  enum mood {
    good,
    throws,
    throws_in_backward,
    chooses_minus_one,
    chooses_one_too_many,
    chooses_a_billion,
    chooses_twice
  };
  static inline mood now = good;

  template <class T> void score(const ms::routed_token<T>& t) const {
    if (now == throws) throw out_of_order("the router is out of order");
    ms::router::top_k<2>{}.score(t);
  }
  template <class T> void choose(const ms::routed_token<T>& t) const {
    ms::router::top_k<2>{}.choose(t);
    if (now == chooses_minus_one) t.chosen[1] = -1;
    if (now == chooses_one_too_many) t.chosen[0] = t.experts;
    if (now == chooses_a_billion) t.chosen[1] = 1'000'000'000;
    if (now == chooses_twice) t.chosen[0] = t.chosen[1] = 3;
  }
  template <class T> void weigh(const ms::routed_token<T>& t) const {
    t.gate[0] = t.gate[1] = T(0.5);
    if (now == good || now == throws_in_backward) ms::router::top_k<2>{}.weigh(t);
  }
  template <class T> void backward(const ms::routed_token<T>& t, const T* dgate, T* dp, T* dlogits) const {
    if (now == throws_in_backward) throw out_of_order("the router is out of order");
    ms::router::top_k<2>{}.backward(t, dgate, dp, dlogits);
  }
  friend bool operator==(const moody_router&, const moody_router&) = default;
};
struct moody : ms::variant {
  using router = moody_router;
};

/// Sets the router's mood until the scope ends.
struct in_mood {
  explicit in_mood(moody_router::mood mood) { moody_router::now = mood; }
  ~in_mood() { moody_router::now = moody_router::good; }
};

/// Sees no dropout.
struct blind : moody_router {
  template <class T> void choose(const ms::routed_token<T>& t) const {
    const ms::expert_set all = ms::expert_set::first(t.experts);
    ms::routed_token<T> everyone = t;
    everyone.alive = &all;
    moody_router::choose(everyone);
  }
};

/// Leaves other experts than a token may visit.
struct stingy_dropout {
  static constexpr std::string_view name = "stingy";
  static inline ms::expert_set left{};
  ms::expert_set survivors(const ms::mask_key&, int, int) const { return left; }
  friend bool operator==(const stingy_dropout&, const stingy_dropout&) = default;
};
struct stingy : ms::variant {
  using expert_dropout = stingy_dropout;
};

}  // namespace bad_policies
using namespace bad_policies;

namespace {

constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN(),
                infinity = std::numeric_limits<float>::infinity();

struct plain : ms::variant {};
using B = ms::cpu<float>;
const ms::sizes small_sizes{
    .layers = 3, .dim = 16, .heads = 4, .kv_heads = 2, .ffn = 12, .experts = 4, .vocab = 11, .context = 160};
const auto ignore = [](const ms::emitted&) {};

struct scratch_folder {
  fs::path path = fs::temp_directory_path() / ms::text("moeskip-bad-input-", int(::getpid()));
  scratch_folder() { fs::create_directories(path); }
  ~scratch_folder() { fs::remove_all(path); }
};

/// The bits of the weights and of the optimizer's state.
template <class Trainer> std::vector<std::uint32_t> state_of(Trainer& t) {
  std::vector<std::uint32_t> bits;
  const auto append = [&](ms::vec<const float> values) {
    for (const float& x : values) bits.push_back(std::bit_cast<std::uint32_t>(x));
  };
  append(t.master());
  t.optimizer_state().blocks([&](std::string_view, const auto&, auto& block) { append(block.view()); });
  return bits;
}

}  // namespace

TEST_CASE("a router that fails comes back to the caller, from one token and from many, and does no harm") {
  ms::model<moody, B> m({.sizes = small_sizes}, ms::seed{1});
  ms::session<moody, B> s(m);
  const std::vector<int> few{1, 2, 3}, many = random_tokens(140, 11, 1);  // many are split among the threads
  const std::vector<int> text = random_tokens(2000, 11, 2);
  ms::random_windows data(text, 8, 20, ms::seed{1});
  ms::trainer<moody, B> t(m, {});
  const auto generated = [&](const std::vector<int>& prompt) {
    return ms::generate(s, prompt, {.max_new_tokens = 5}, moody::decoder{}, ignore).ids();
  };
  const auto expected = generated(many);
  const auto untouched = state_of(t);
  {
    const in_mood mood(moody_router::throws);
    for (const auto* prompt : {&few, &many})
      CHECK_THROWS_WITH_AS(generated(*prompt), "the router is out of order", out_of_order);
    CHECK_THROWS_WITH_AS(t.step(data), "the router is out of order", out_of_order);
  }
  {
    const in_mood mood(moody_router::throws_in_backward);
    CHECK_THROWS_WITH_AS(t.step(data), "the router is out of order", out_of_order);
  }
  const auto refuses = [&](moody_router::mood how, const char* message) {
    const in_mood mood(how);
    for (const auto* prompt : {&few, &many})
      CHECK_THROWS_WITH_AS(generated(*prompt), doctest::Contains(message), ms::config_error);
    CHECK_THROWS_WITH_AS(t.step(data), doctest::Contains(message), ms::config_error);
  };
  refuses(moody_router::chooses_minus_one, "the router chose expert -1 of 4");
  refuses(moody_router::chooses_one_too_many, "the router chose expert 4 of 4");
  refuses(moody_router::chooses_a_billion, "the router chose expert 1000000000 of 4");
  refuses(moody_router::chooses_twice, "the router chose expert 3 twice");
  CHECK(generated(many) == expected);
  CHECK(state_of(t) == untouched);
  CHECK(t.next_step() == 0);
  CHECK(std::isfinite(t.step(data).losses.total));
}

TEST_CASE("the plain loops refuse the same choices") {
  ms::model<moody, ms::reference<double>> m({.sizes = small_sizes}, ms::seed{1});
  const auto refuses = [&](moody_router::mood how, const char* message) {
    const in_mood mood(how);
    CHECK_THROWS_WITH_AS(ms::generate(m, std::vector<int>{1, 2}, {.max_new_tokens = 5}), doctest::Contains(message),
                         ms::config_error);
  };
  refuses(moody_router::chooses_minus_one, "the router chose expert -1 of 4");
  refuses(moody_router::chooses_one_too_many, "the router chose expert 4 of 4");
  refuses(moody_router::chooses_twice, "the router chose expert 3 twice");
}

TEST_CASE_TEMPLATE("a router that chooses an expert that was dropped out is refused", Back, B, ms::reference<float>) {
  Back backend;
  ms::arena memory;
  const ms::routing<float> r{memory.take<float>(2, 4), memory.take<int>(2, 2), memory.take<float>(2, 2),
                             memory.take<float>(4)};
  const std::vector<float> logits{5, 4, 3, 2, 1, 2, 3, 4};
  ms::expert_set set = ms::expert_set::first(4).erase(3);
  const auto routed = [&] {
    ms::route(backend, r, ms::mat<const float>(logits.data(), 2, 4), blind{},
              ms::routing_call<float>{.alive = {{&set, 1}}}, memory);
  };
  CHECK_THROWS_WITH_AS(routed(), "the router chose expert 3, which was dropped out", ms::config_error);
  set.insert(3);
  CHECK_NOTHROW(routed());
}

TEST_CASE("memory that is not to be had is an error that names the bytes") {
  CHECK_THROWS_WITH_AS(ms::buffer<float>(ms::index_t{1} << 40), "out of memory: 4398046511104 bytes were asked for",
                       ms::error);
  CHECK_THROWS_WITH_AS(ms::buffer<double>(PTRDIFF_MAX), doctest::Contains("elements of 8 bytes were asked for"),
                       ms::error);
  CHECK_THROWS_AS(ms::buffer<double>(-1), ms::error);
  ms::arena memory;
  CHECK_THROWS_WITH_AS(memory.take<float>(1 << 20, 1 << 20), doctest::Contains("4398046511104 bytes"), ms::error);
  CHECK(memory.take<float>(100).size() == 100);
  // A valid config whose cache is 3 layers · 2 · 2^24 tokens · 8 numbers · 4 bytes.
  ms::sizes s = small_sizes;
  s.context = 1 << 24;
  ms::model<plain, B> m({.sizes = s}, ms::seed{1});
  CHECK_THROWS_WITH_AS((ms::session<plain, B>(m)), "out of memory: 3221225472 bytes were asked for", ms::error);
}

TEST_CASE("what a task throws on any thread reaches the caller") {
  ms::set_thread_count(2);
  for (const int guilty : {0, 1, 6}) {
    std::atomic<int> done{0};
    CHECK_THROWS_WITH_AS(ms::parallel_tasks(7,
                                            [&](ms::index_t task) {
                                              if (task == guilty) throw out_of_order("task");
                                              ++done;
                                            }),
                         "task", out_of_order);
    CHECK(done <= 6);
  }
  int threads_seen = 0;
  CHECK_THROWS_AS(ms::parallel([&](int thread, int threads) {
                    if (thread == 0) threads_seen = threads;
                    throw out_of_order("all of them");
                  }),
                  out_of_order);
  CHECK(threads_seen == ms::thread_count());
  CHECK_THROWS_AS(ms::parallel_for(100,
                                   [](ms::index_t, ms::index_t last) {
                                     if (last == 100) throw out_of_order("the last share");
                                   }),
                  out_of_order);
}

TEST_CASE("expert dropout that leaves too few experts is refused by name") {
  ms::model<stingy, B> m({.sizes = small_sizes}, ms::seed{1});
  const std::vector<int> text = random_tokens(2000, 11, 2);
  ms::random_windows data(text, 8, 20, ms::seed{1});
  ms::trainer<stingy, B> t(m, {});
  const auto untouched = state_of(t);
  const auto refuses = [&](const ms::expert_set& left, const char* message) {
    stingy_dropout::left = left;
    CHECK_THROWS_WITH_AS(t.step(data), doctest::Contains(message), ms::config_error);
    CHECK(state_of(t) == untouched);
  };
  refuses({}, "expert_dropout stingy left fewer experts than a token visits: expected at least 2, got 0");
  refuses(ms::expert_set{}.insert(3),
          "expert_dropout stingy left fewer experts than a token visits: expected at least 2, got 1");
  // Experts that the model does not have do not count.
  refuses(ms::expert_set{}.insert(3).insert(4).insert(400),
          "expert_dropout stingy left fewer experts than a token visits: expected at least 2, got 1");
  stingy_dropout::left = ms::expert_set{}.insert(1).insert(3).insert(400);
  CHECK_NOTHROW(t.step(data));
}

TEST_CASE("checkpoints with absurd metadata are refused before memory is taken for them") {
  const scratch_folder folder;
  const ms::model<plain, B> m({.sizes = small_sizes, .exits = ms::exits_after(1)}, ms::seed{1});
  const auto refused = [&](const char* key, const char* value, const char* message) {
    const fs::path file = folder.path / "absurd.safetensors";
    ms::safetensors_writer writer;
    for (const auto& [name, known] : ms::to_metadata(m.configuration())) writer.metadata(name, known);
    writer.metadata(key, value);
    ms::detail::add_block<float>(writer, m.tensors(), m.block());
    writer.write(file);
    CAPTURE(key);
    CAPTURE(value);
    largest = 0;
    CHECK_THROWS_WITH_AS((ms::load<plain, B>(file)), doctest::Contains(message), ms::file_error);
    CHECK(largest < std::size_t{1} << 24);  // bytes; the file itself is 30 kB
  };
  refused("sizes.ffn", "2000000000", "no extent may be negative or above 16,777,216");
  refused("sizes.dim", "2147483640", "no extent may be negative or above 16,777,216");
  refused("sizes.vocab", "2000000000", "no extent may be negative or above 16,777,216");
  refused("sizes.context", "2000000000", "no extent may be negative or above 16,777,216");
  refused("sizes.dense_ffn", "-5", "sizes");
  refused("sizes.kv_heads", "-2", "sizes");
  refused("sizes.head_dim", "-4", "sizes");
  refused("sizes.head_dim", "16777216", "queries, keys and values together");
  refused("sizes.tied", "true", "unexpected tensor lm_head.weight");
  refused("sizes.layers", "1000000", "sizes.layers must be from 1 to 127");
  refused("sizes.experts", "513", "sizes.experts must be at most 512");
  refused("sizes.moe_every", "-1", "sizes.moe_every");
  refused("sizes.rope_theta", "nan", "sizes.rope_theta must be positive and finite");
  refused("sizes.rope_theta", "-3", "sizes.rope_theta must be positive and finite");
  refused("sizes.rope_theta", "inf", "sizes.rope_theta must be positive and finite");
  refused("sizes.norm_eps", "inf", "sizes.norm_eps must be between 0 and 1");
  refused("sizes.norm_eps", "nan", "sizes.norm_eps must be between 0 and 1");
  refused("router.order", "77", "router.order must be");
  refused("router.balance_loss", "nan", "router.balance_loss must be");
  refused("router.z_loss", "-inf", "router.z_loss must be");
  // Numbers that are no ints.
  refused("sizes.ffn", "20000000000", "sizes.ffn: expected a value, got '20000000000'");
  refused("sizes.ffn", "12.5", "sizes.ffn: expected a value, got '12.5'");
  refused("sizes.tied", "maybe", "sizes.tied: expected a value, got 'maybe'");
  refused("exits", "1 500", "exits: expected layers from 1 to 127, got '500'");
  refused("exits", "99", "exits must lie from 1 to sizes.layers - 1");
  // Possible, but not what the file holds.
  refused("sizes.ffn", "8000000", "expected shape (8000000, 16), got (12, 16)");
  refused("sizes.vocab", "16777216", "expected shape (16777216, 16), got (11, 16)");
  refused("sizes.layers", "127", "model.layers.3.");
  refused("sizes.experts", "512", "mlp.gate.weight");
  refused("sizes.heads", "1000000", "sizes");
}

TEST_CASE("files that are no checkpoints") {
  const scratch_folder folder;
  const auto refused = [&](const fs::path& file, const char* message) {
    CAPTURE(file.string());
    CHECK_THROWS_WITH_AS((ms::load<plain, B>(file)), doctest::Contains(file.c_str()), ms::file_error);
    CHECK_THROWS_WITH_AS((ms::load<plain, B>(file)), doctest::Contains(message), ms::file_error);
  };
  std::ofstream(folder.path / "empty").close();
  std::ofstream(folder.path / "text") << "Once upon a time there was a file that held no weights at all.\n";
  std::ofstream(folder.path / "short") << "abc";
  refused(folder.path / "empty", "expected at least 8 bytes, got 0");
  refused(folder.path / "short", "expected at least 8 bytes, got 3");
  refused(folder.path / "text", "is this a safetensors file?");
  refused(folder.path, "expected a file, got a directory");
  ms::safetensors_writer writer;
  const std::vector<float> numbers(4);
  writer.add("x", std::vector<std::int64_t>{4}, std::span<const float>(numbers));
  writer.write(folder.path / "other.safetensors");
  refused(folder.path / "other.safetensors", "expected a moeskip checkpoint (metadata format=moeskip), got none");
}

TEST_CASE("sets hold what fits them and nothing else") {
  ms::layer_set s;
  CHECK(s.insert(5000).insert(-1).insert(128) == ms::layer_set{});
  CHECK(s.insert(127).size() == 1);
  CHECK_FALSE((s.contains(5000) || s.contains(-1) || s.contains(128)));
  CHECK(s.erase(5000).erase(-1) == ms::layer_set{}.insert(127));
  CHECK(ms::expert_set::first(100000).size() == 512);

  const ms::layer_set every = ms::exits_every(2, 300);
  CHECK(every.size() == 63);  // 2, 4, … 126
  CHECK((every.contains(126) && !every.contains(127)));
  CHECK(ms::exits_every(INT_MAX, INT_MAX) == ms::layer_set{});
  for (const int n : {0, -3})
    CHECK_THROWS_WITH_AS(ms::exits_every(n, 8), doctest::Contains("exits must be at least 1 layer apart, got "),
                         ms::config_error);
  const auto refused = [](auto... layers) {
    CHECK_THROWS_WITH_AS(ms::exits_after(layers...), doctest::Contains("exits must lie from 1 to 127, got "),
                         ms::config_error);
  };
  refused(300), refused(0), refused(4, -1), refused(128);
  CHECK(ms::exits_after(127).contains(127));
  ms::config<plain> deep{.sizes = small_sizes, .exits = every};
  deep.sizes.layers = 300;
  CHECK_THROWS_WITH_AS((ms::model<plain, B>(deep)), doctest::Contains("sizes.layers must be from 1 to 127"),
                       ms::config_error);
}

TEST_CASE_TEMPLATE("weights that are no numbers stop training, and leave it where it was", Back, ms::cpu<float>,
                   ms::cpu<ms::bf16>) {
  const std::vector<int> text = random_tokens(2000, 11, 2);
  ms::random_windows data(text, 4, 20, ms::seed{1});
  ms::model<plain, Back> m({.sizes = small_sizes}, ms::seed{1}), sound({.sizes = small_sizes}, ms::seed{1});
  ms::trainer<plain, Back> t(m, {}), reference(sound, {});
  for (int i = 0; i < 3; ++i) t.step(data), reference.step(data);
  const std::size_t at = std::size_t(m.tensors()[5].offset) + 3;
  for (const float poison : {not_a_number, infinity}) {
    const float before = t.master()[ms::index_t(at)];
    t.master()[ms::index_t(at)] = poison, t.continue_at(3);
    const auto poisoned = state_of(t);
    CHECK_THROWS_WITH_AS(t.step(data), doctest::Contains("training diverged: the gradient of step 3 is not finite"),
                         ms::error);
    CHECK(state_of(t) == poisoned);
    CHECK(t.next_step() == 3);
    t.master()[ms::index_t(at)] = before, t.continue_at(3);
  }
  t.step(data), reference.step(data);
  CHECK(state_of(t) == state_of(reference));
}

TEST_CASE("training options that mean nothing") {
  ms::model<plain, B> m({.sizes = small_sizes}, ms::seed{1});
  const auto refused = [&](auto change, const char* message) {
    ms::training<plain> options;
    change(options);
    CHECK_THROWS_WITH_AS((ms::trainer<plain, B>(m, options)), doctest::Contains(message), ms::config_error);
  };
  refused([](auto& o) { o.steps = 0; }, "training.steps");
  refused([](auto& o) { o.accumulate = 0; }, "training.accumulate");
  refused([](auto& o) { o.clip = -1; }, "training.clip");
  refused([](auto& o) { o.clip = double(not_a_number); }, "training.clip");
  refused([](auto& o) { o.clip = double(infinity); }, "training.clip");
  refused([](auto& o) { o.exit_scale = 1.5; }, "training.exit_scale");
  refused([](auto& o) { o.exit_scale = double(not_a_number); }, "training.exit_scale");
  refused([](auto& o) { o.schedule.warmup = -1; }, "training.schedule.warmup");
  refused([](auto& o) { o.schedule.floor = 2; }, "training.schedule.floor");
  refused([](auto& o) { o.schedule.floor = double(not_a_number); }, "training.schedule.floor");
  refused([](auto& o) { o.optimizer.lr = 0; }, "training.optimizer.lr");
  refused([](auto& o) { o.optimizer.lr = -1e-3; }, "training.optimizer.lr");
  refused([](auto& o) { o.optimizer.lr = double(infinity); }, "training.optimizer.lr");
  refused([](auto& o) { o.optimizer.lr = double(not_a_number); }, "training.optimizer.lr");
  refused([](auto& o) { o.optimizer.beta1 = 1; }, "beta1 and beta2 must be in [0, 1)");
  refused([](auto& o) { o.optimizer.beta2 = -0.1; }, "beta1 and beta2 must be in [0, 1)");
  refused([](auto& o) { o.optimizer.beta2 = double(not_a_number); }, "beta1 and beta2 must be in [0, 1)");
  refused([](auto& o) { o.optimizer.epsilon = 0; }, "epsilon must be positive");
  refused([](auto& o) { o.optimizer.weight_decay = -1; }, "weight_decay must be 0 or more");
  // The least and the most that do mean something.
  ms::training<plain> extreme{.steps = 1, .clip = 0, .exit_scale = 0, .schedule = {.warmup = 0, .floor = 1}};
  extreme.optimizer.beta1 = extreme.optimizer.beta2 = 0;
  const std::vector<int> text = random_tokens(2000, 11, 2);
  ms::random_windows data(text, 2, 20, ms::seed{1});
  ms::trainer<plain, B> t(m, extreme);
  for (int i = 0; i < 3; ++i) CHECK(std::isfinite(t.step(data).losses.total));  // past the planned end, too
}

TEST_CASE("policies whose numbers mean nothing") {
  struct dropping : ms::variant {
    using expert_dropout = ms::expert_dropout::bernoulli;
    using layer_dropout = ms::layer_dropout::exponential;
  };
  struct linear : ms::variant {
    using layer_dropout = ms::layer_dropout::linear;
  };
  struct switching : ms::variant {
    using router = ms::router::switch_top1;
  };
  const auto refused = []<class V>(ms::config<V> config, auto change, const char* message) {
    config.sizes = small_sizes;
    CHECK(ms::valid(config));
    change(config);
    CHECK_FALSE(ms::valid(config));
    CHECK_THROWS_WITH_AS((ms::model<V, B>(config)), doctest::Contains(message), ms::config_error);
  };
  for (const float p : {-0.1f, 1.f, 2.f, not_a_number, infinity}) {
    CAPTURE(p);
    refused(
        ms::config<dropping>{}, [&](auto& c) { c.layer_dropout.p_max = p; }, "layer_dropout.p_max must be in [0, 1)");
    refused(
        ms::config<linear>{}, [&](auto& c) { c.layer_dropout.p_max = p; }, "layer_dropout.p_max must be in [0, 1)");
    refused(
        ms::config<dropping>{}, [&](auto& c) { c.expert_dropout.p = p; }, "expert_dropout.p must be in [0, 1)");
  }
  for (const float bad : {-1.f, not_a_number, infinity}) {
    CAPTURE(bad);
    refused(
        ms::config<switching>{}, [&](auto& c) { c.router.capacity_factor = bad; },
        "router.capacity_factor must be 0 (no limit) or more, and finite");
    refused(
        ms::config<switching>{}, [&](auto& c) { c.router.balance_loss = bad; }, "router.balance_loss must be");
    refused(
        ms::config<switching>{}, [&](auto& c) { c.router.z_loss = bad; }, "router.z_loss must be");
    refused(
        ms::config<plain>{}, [&](auto& c) { c.router.balance_loss = bad; }, "router.balance_loss must be");
    refused(
        ms::config<plain>{}, [&](auto& c) { c.router.z_loss = bad; }, "router.z_loss must be");
  }
  refused(
      ms::config<plain>{}, [](auto& c) { c.router.order = ms::router::softmax_order(77); }, "router.order must be");
}

TEST_CASE("batches that do not fit the model or themselves") {
  ms::model<plain, B> m({.sizes = small_sizes}, ms::seed{1});
  ms::trainer<plain, B> t(m, {});
  const auto untouched = state_of(t);
  std::vector<int> tokens(1000, 3);
  const auto refused = [&](int inputs, int targets, int sequences, int length, const char* message) {
    const ms::batch data{{tokens.data(), inputs}, {tokens.data(), targets}, sequences, length};
    CHECK_THROWS_WITH_AS(t.step([&](std::uint64_t, std::uint64_t) { return data; }), doctest::Contains(message),
                         ms::config_error);
    CHECK(state_of(t) == untouched);
  };
  refused(40, 39, 4, 10, "a batch of 4 sequences of 10 needs 40 inputs and targets, got 40 and 39");
  refused(39, 40, 4, 10, "a batch of 4 sequences of 10 needs 40 inputs and targets, got 39 and 40");
  refused(41, 41, 4, 10, "a batch of 4 sequences of 10 needs 40 inputs and targets, got 41 and 41");
  refused(0, 0, 4, 10, "a batch of 4 sequences of 10 needs 40 inputs and targets, got 0 and 0");
  refused(322, 322, 2, 161, "sequences of 161 tokens are longer than the context of 160");
  tokens[7] = 11;
  refused(40, 40, 4, 10, "token id 11 is outside the vocabulary of 11");
  tokens[7] = -1;
  refused(40, 40, 4, 10, "token id -1 is outside the vocabulary of 11");
  tokens[7] = 3;
  const std::vector<int> strange(40, 12);
  CHECK_THROWS_WITH_AS(t.step([&](std::uint64_t, std::uint64_t) {
    return ms::batch{{tokens.data(), 40}, {strange.data(), 40}, 4, 10};
  }),
                       doctest::Contains("target id 12 is outside the vocabulary of 11"), ms::config_error);
  CHECK(state_of(t) == untouched);
}

TEST_CASE("evaluations that mean nothing") {
  ms::model<plain, B> m({.sizes = small_sizes}, ms::seed{1});
  const std::vector<int> text = random_tokens(500, 11, 2);
  const auto refused = [&](std::span<const int> tokens, int length, int sequences, const char* message) {
    CHECK_THROWS_WITH_AS(ms::evaluate(m, tokens, length, sequences), doctest::Contains(message), ms::config_error);
  };
  refused(text, 0, 8, "windows must have from 1 token to the context of 160, got 0");
  refused(text, -7, 8, "windows must have from 1 token to the context of 160, got -7");
  refused(text, 161, 8, "windows must have from 1 token to the context of 160, got 161");
  refused(text, 20, 0, "at least one window must be run at a time, got 0");
  refused(text, 20, -3, "at least one window must be run at a time, got -3");
  refused(std::span(text).first(20), 20, 8, "too short: expected at least 21 tokens, got 20");
  refused({}, 20, 8, "too short: expected at least 21 tokens, got 0");
  CHECK(std::isfinite(ms::evaluate(m, text, 160, 100, 1000).back().bits_per_token));
}

TEST_CASE("as many speculations as there is room for, however many are asked for") {
  ms::model<plain, B> m({.sizes = small_sizes, .exits = ms::exits_after(1, 2)}, ms::seed{1});
  for (float& w : m.block()) w *= 1.5f;
  ms::session<plain, B> s(m);
  const std::vector<int> prompt{1, 2, 3};
  const auto text = ms::generate(s, prompt, {}, ms::decoder::autoregressive{}, ignore).ids();
  REQUIRE(text.size() == 158);
  for (const int speculations : {157, 200, 1'000'000'000, INT_MAX}) {
    CAPTURE(speculations);
    largest = 0;
    const auto fast = ms::generate(s, prompt, {}, fixed_length{.length = {.num_speculations = speculations}}, ignore);
    CHECK(fast.ids() == text);
    CHECK(largest < std::size_t{1} << 24);
  }
}

// The text must outlive the windows: a temporary is refused by the compiler.
template <class Text> constexpr bool takes = requires(Text&& text) {
  ms::random_windows(std::forward<Text>(text), 1, 1, ms::seed{1});
};
static_assert(takes<std::vector<int>&>);
static_assert(takes<const std::vector<int>&>);
static_assert(takes<std::span<const int>>);
static_assert(!takes<std::vector<int>>);
