// The ops' doors: views that do not fit together, and indices that point nowhere, come back as exceptions that name op
// and argument, on the CPU and on plain loops; nothing is read or written first.
#include <doctest/doctest.h>

#include "tiny.hpp"

using namespace tests;

namespace {

using cpu = ms::cpu<float>;
using plain = ms::reference<float>;

/// Views of zeros.
struct zeros {
  ms::arena memory;
  template <class... Extents> auto operator()(Extents... extents) { return memory.take_zeroed<float>(extents...); }
};

/// Two sequences of five positions, two heads over one key/value head of size 4.
struct attention_call {
  zeros z;
  ms::attention_shape shape{.heads = 2, .kv_heads = 1, .head_dim = 4, .scale = 0.5f};
  ms::kv_layer<float> kv{z(2, 5, 4), z(2, 5, 4)}, dkv{z(2, 5, 4), z(2, 5, 4)};
  std::vector<int> slot{0, 1}, position{3, 4};
  ms::mat<float> q = z(2, 8), out = z(2, 8), qkv = z(2, 16);

  ms::qkv_adjustment<float> adjustment{};

  /// One of the five ops.
  template <class B> void run(int which) {
    B b;
    const ms::token_rows rows{{slot.data(), slot.size()}, {position.data(), position.size()}};
    if (which == 0) ms::attend(b, out, q, kv, rows, shape, z.memory);
    if (which == 1) ms::attend_backward(b, out, dkv, q, q, kv, rows, shape, z.memory);
    if (which == 2) ms::rope_append(b, q, kv, qkv, rows, shape);
    if (which == 3) ms::rope_append_backward(b, qkv, q, dkv, rows, shape);
    if (which == 4) ms::append_attend(b, out, qkv, kv, rows, adjustment, shape, z.memory);
  }
};
constexpr const char* attention_ops[] = {"attend", "attend_backward", "rope_append", "rope_append_backward",
                                         "append_attend"};

}  // namespace

TEST_CASE_TEMPLATE("attention: rows outside the cache, heads that share unevenly", B, cpu, plain) {
  for (int which = 0; which < 5; ++which) {
    const auto refused = [&](auto change, const std::string& message) {
      attention_call call;
      change(call);
      CHECK_THROWS_WITH_AS(call.run<B>(which), ms::text(attention_ops[which], ": ", message).c_str(), ms::config_error);
    };
    refused([](auto& c) { c.position[1] = 5; }, "position 5 is beyond the key/value cache of 5 tokens");
    refused([](auto& c) { c.position[0] = -1; }, "position -1 is beyond the key/value cache of 5 tokens");
    refused([](auto& c) { c.slot[1] = 2; }, "slot 2 is beyond the key/value cache of 2 sequences");
    refused([](auto& c) { c.slot[0] = -100000; }, "slot -100000 is beyond the key/value cache of 2 sequences");
    refused(
        [](auto& c) {
          c.shape = {.heads = 3, .kv_heads = 2, .head_dim = 2, .scale = 0.5f};
          c.q = c.z(2, 6), c.out = c.z(2, 6), c.qkv = c.z(2, 14);
        },
        "expected heads to be a multiple of kv_heads, got 3 and 2");
    attention_call sound;
    CHECK_NOTHROW(sound.run<B>(which));
  }
}

TEST_CASE_TEMPLATE("attention: caches of other shapes", B, cpu, plain) {
  const auto refused = [](int which, auto change, const char* message) {
    attention_call call;
    change(call);
    CHECK_THROWS_WITH_AS(call.run<B>(which), ms::text(attention_ops[which], ": ", message).c_str(), ms::shape_error);
  };
  for (int which = 0; which < 5; ++which) {
    const auto each = [&](auto change, const char* message) {
      refused(
          which, [&](auto& c) { change(c, which == 3 ? c.dkv : c.kv); }, message);
    };
    each([](auto& c, auto& kv) { kv.keys = c.z(2, 5, 6); }, "keys must be (2, 5, 4), got (2, 5, 6)");
    each([](auto& c, auto& kv) { kv.values = c.z(2, 4, 4); }, "values must be (2, 5, 4), got (2, 4, 4)");
    each([](auto& c, auto&) { c.slot.pop_back(); }, "rows.slot must be (2), got (1)");
  }
  refused(
      4, [](auto& c) { c.adjustment.bias = c.z(8); }, "bias must be (16), got (8)");
  refused(
      4, [](auto& c) { c.adjustment.q_gain = c.z(6); }, "q_gain must be (4) or (8), got (6)");
  refused(
      4, [](auto& c) { c.adjustment.k_gain = c.z(8); }, "k_gain must be (4) or (4), got (8)");
  refused(
      1, [](auto& c) { c.dkv.keys = c.z(1, 5, 4); }, "dkeys must be (2, 5, 4), got (1, 5, 4)");
  refused(
      1, [](auto& c) { c.dkv.values = c.z(2, 5, 3); }, "dvalues must be (2, 5, 4), got (2, 5, 3)");
}

TEST_CASE_TEMPLATE("embedding and rows: indices that point nowhere", B, cpu, plain) {
  B b;
  zeros z;
  for (const int bad : {4, -1, 1'000'000}) {
    const std::vector<int> list{3, bad};
    const ms::vec<const int> ids(list.data(), 2);
    CHECK_THROWS_WITH_AS(ms::embed_backward(b, z(4, 3), z(2, 3), ids),
                         ms::text("token id ", bad, " is outside the vocabulary of 4").c_str(), ms::config_error);
    CHECK_THROWS_WITH_AS(ms::gather_rows(b, z(2, 3), z(4, 3), ids),
                         ms::text("gather_rows: row ", bad, " is outside the 4 rows there are").c_str(),
                         ms::config_error);
    CHECK_THROWS_WITH_AS(ms::scatter_rows(b, z(4, 3), z(2, 3), ids),
                         ms::text("scatter_rows: row ", bad, " is outside the 4 rows there are").c_str(),
                         ms::config_error);
  }
}

TEST_CASE_TEMPLATE("experts: weights and gradients of other shapes", B, cpu, plain) {
  // Two rows, one expert each of three; width 4, hidden width 5.
  struct call {
    zeros z;
    ms::mat<float> h = z(2, 4), y = z(2, 4), dh = z(2, 4), dy = z(2, 4), gate_up = z(2, 10), dgate = z(2, 1);
    ms::mat<int> chosen{z.memory.take_zeroed<int>(2).data(), 2, 1};
    ms::routing<float> r{{}, chosen, z(2, 1), {}};
    ms::dispatch plan = ms::plan_dispatch(chosen, 3, 0, z.memory);
    ms::expert_weights<const float> w{z(3, 10, 4), z(3, 4, 5)};
    ms::expert_weights<float> dw{z(3, 10, 4), z(3, 4, 5)};
    void forward(B& b) { ms::experts(b, y, gate_up, h, h, r, plan, w, z.memory); }
    void backward(B& b) { ms::experts_backward(b, dh, dgate, dw, dy, gate_up, h, r, plan, w, z.memory); }
  };
  B b;
  const auto refused = [&](auto change, const char* message) {
    call c;
    change(c);
    CHECK_THROWS_WITH_AS(c.backward(b), ms::text("experts_backward: ", message).c_str(), ms::shape_error);
  };
  const auto both = [&](auto change, const char* message) {
    refused(change, message);
    call c;
    change(c);
    CHECK_THROWS_WITH_AS(c.forward(b), ms::text("experts: ", message).c_str(), ms::shape_error);
  };
  both([](auto& c) { c.w.down = c.z(3, 3, 5); }, "w.down must be (3, 4, 5), got (3, 3, 5)");
  both([](auto& c) { c.w.gate_up = c.z(2, 10, 4); }, "w.gate_up must be (3, 10, 4), got (2, 10, 4)");
  both([](auto& c) { c.r.gate = c.z(1, 1); }, "gate must be (2, 1), got (1, 1)");
  refused([](auto& c) { c.dw.gate_up = c.z(3, 8, 4); }, "dw.gate_up must be (3, 10, 4), got (3, 8, 4)");
  refused([](auto& c) { c.dw.down = c.z(3, 5, 4); }, "dw.down must be (3, 4, 5), got (3, 5, 4)");
  refused([](auto& c) { c.dh = c.z(1, 4); }, "dh must be (2, 4), got (1, 4)");
  refused([](auto& c) { c.dy = c.z(2, 3); }, "dy must be (2, 4), got (2, 3)");
  refused([](auto& c) { c.dgate = c.z(2, 2); }, "dgate must be (2, 1), got (2, 2)");
  call sound;
  CHECK_NOTHROW((sound.forward(b), sound.backward(b)));
}

TEST_CASE_TEMPLATE("balance_loss: routings of other shapes", B, cpu, plain) {
  B b;
  zeros z;
  const ms::expert_set all = ms::expert_set::first(3);
  const ms::routing_call<float> call{.alive = {{&all, 1}}};
  const auto loss = [&](ms::mat<float> probability, ms::vec<float> load) {
    losses_of(b, ms::routing<float>{probability, {}, {}, load}, z(2, 3), call, z.memory);
  };
  CHECK_THROWS_WITH_AS(loss(z(2, 4), z(4)), "balance_loss: logits must be (2, 4), got (2, 3)", ms::shape_error);
  CHECK_THROWS_WITH_AS(loss(z(3, 3), z(3)), "balance_loss: logits must be (3, 3), got (2, 3)", ms::shape_error);
  CHECK_THROWS_WITH_AS(loss(z(2, 3), z(2)), "balance_loss: load must be (3), got (2)", ms::shape_error);
  CHECK_NOTHROW(loss(z(2, 3), z(3)));
}

TEST_CASE("a dispatch plan refuses rows with one expert twice, however many rows there are") {
  ms::arena memory;
  for (const int rows : {1, 2, 19, 300}) {
    const ms::mat<int> chosen(memory.take<int>(rows * 3).data(), rows, 3);
    for (int n = 0; n < rows; ++n) chosen(n, 0) = n % 4, chosen(n, 1) = (n + 1) % 4, chosen(n, 2) = (n + 2) % 4;
    CHECK_NOTHROW(ms::plan_dispatch(chosen, 4, 0, memory));
    chosen(rows - 1, 2) = chosen(rows - 1, 0);
    CHECK_THROWS_WITH_AS(ms::plan_dispatch(chosen, 4, 0, memory),
                         ms::text("the router chose expert ", (rows - 1) % 4, " twice").c_str(), ms::config_error);
  }
}

TEST_CASE("angles of positions on both sides of a step of the table, in any order") {
  const ms::attention_shape shape{.heads = 1, .kv_heads = 1, .head_dim = 6, .rope_theta = 345.f};
  ms::arena memory;
  cpu fast;
  ms::reference<float> exact;
  std::vector<int> slot(5, 0), position{2047, 0, 1023, 1024, 2048};
  const ms::token_rows rows{{slot.data(), 5}, {position.data(), 5}};
  ms::mat<float> qkv = memory.take<float>(5, 18), got = memory.take<float>(5, 6), want = memory.take<float>(5, 6);
  for (ms::index_t i = 0; i < qkv.size(); ++i) qkv.data()[i] = float(random_number(1, std::uint64_t(i)));
  const ms::kv_layer<float> kv{memory.take<float>(1, 2050, 6), memory.take<float>(1, 2050, 6)};
  ms::rope_append(fast, got, kv, qkv, rows, shape), ms::rope_append(exact, want, kv, qkv, rows, shape);
  for (ms::index_t i = 0; i < got.size(); ++i) CHECK(got.data()[i] == doctest::Approx(want.data()[i]).epsilon(1e-5));
}
