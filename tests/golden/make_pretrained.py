#!/usr/bin/env python3
"""Writes tests/golden/pretrained: tiny checkpoints of real architectures with random weights, as transformers saves
them, and beside each what transformers computes with it, in float64 but for the softmaxes and norms that it always computes in float32.

    golden.safetensors    inputs (sequences, length), logits (sequences * length, vocab)

Two prompts of 23 tokens: more than the 16 rows that decoding runs at a time, and no multiple of the 5 of a run.
"""
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import transformers as tf
from safetensors.torch import save_file

SEQUENCES, LENGTH = 2, 23
HERE = Path(__file__).parent / "pretrained"

BASE = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=37,
            max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0)

CASES = {
    # Llama 3.1's stretched rotations; 24 positions of an original 16 reach all three kinds of frequencies.
    "llama": (tf.LlamaConfig, tf.LlamaForCausalLM, {}, BASE | dict(
        intermediate_size=28, head_dim=12, rms_norm_eps=1e-5,
        rope_parameters=dict(rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0,
                             high_freq_factor=4.0, original_max_position_embeddings=16))),
    "llama_tied": (tf.LlamaConfig, tf.LlamaForCausalLM, {}, BASE | dict(
        intermediate_size=28, tie_word_embeddings=True, hidden_size=16)),
    "mixtral": (tf.MixtralConfig, tf.MixtralForCausalLM, dict(max_shard_size="12kB"), BASE | dict(
        intermediate_size=14, num_local_experts=5, num_experts_per_tok=2)),
    "olmoe": (tf.OlmoeConfig, tf.OlmoeForCausalLM, {}, BASE | dict(
        intermediate_size=6, num_experts=10, num_experts_per_tok=8)),
    "qwen2_moe": (tf.Qwen2MoeConfig, tf.Qwen2MoeForCausalLM, {}, BASE | dict(
        num_hidden_layers=3, intermediate_size=18, moe_intermediate_size=8, shared_expert_intermediate_size=14,
        num_experts=6, num_experts_per_tok=4, decoder_sparse_step=2, use_sliding_window=False)),
    "qwen3_moe": (tf.Qwen3MoeConfig, tf.Qwen3MoeForCausalLM, {}, BASE | dict(
        intermediate_size=18, moe_intermediate_size=6, num_experts=10, num_experts_per_tok=8, head_dim=6,
        norm_topk_prob=True)),
    # Groups of experts, of which two are open; two shared experts; the first layer dense.
    "dots1": (tf.Dots1Config, tf.Dots1ForCausalLM, {}, BASE | dict(
        num_hidden_layers=3, intermediate_size=18, moe_intermediate_size=5, n_routed_experts=16, n_shared_experts=2,
        n_group=4, topk_group=2, num_experts_per_tok=6, first_k_dense_replace=1, head_dim=6, norm_topk_prob=True,
        routed_scaling_factor=2.5, sliding_window=None)),
    # Half of each head is rotated.
    "glm4_moe": (tf.Glm4MoeConfig, tf.Glm4MoeForCausalLM, {}, BASE | dict(
        num_hidden_layers=3, intermediate_size=18, moe_intermediate_size=5, n_routed_experts=10, n_shared_experts=1,
        num_experts_per_tok=8, first_k_dense_replace=2, head_dim=12, attention_bias=True, num_mtp_layers=0)),
    "glm4_moe_normed": (tf.Glm4MoeConfig, tf.Glm4MoeForCausalLM, {}, BASE | dict(
        intermediate_size=18, moe_intermediate_size=5, n_routed_experts=10, n_shared_experts=1, num_experts_per_tok=8,
        head_dim=12, attention_bias=True, use_qk_norm=True, norm_topk_prob=False, routed_scaling_factor=0.5,
        num_mtp_layers=0)),
}


def make(name):
    configure, build, how, numbers = CASES[name]
    torch.manual_seed(len(name))
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model = build(configure(**numbers)).eval()
    with torch.no_grad():  # transformers starts with weights of 0.02 and norms of 1: far from any real model
        for key, weight in model.named_parameters():
            if weight.dim() == 1 and "bias" not in key:
                weight.copy_(1 + 0.3 * torch.randn_like(weight))
            elif "bias" in key:
                weight.copy_(0.5 * torch.randn_like(weight))
            else:
                weight.copy_(torch.randn_like(weight) * 1.5 / weight.shape[-1] ** 0.5)
        for key, buffer in model.named_buffers():
            if "correction_bias" in key:  # the selection bias
                buffer.copy_(0.3 * torch.randn_like(buffer))
    model.save_pretrained(folder, **how)
    (folder / "generation_config.json").unlink(missing_ok=True)
    exact = build.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager",
                                  experts_implementation="eager").eval()
    inputs = torch.randint(0, numbers["vocab_size"], (SEQUENCES, LENGTH))
    with torch.no_grad():
        logits = exact(inputs, use_cache=False).logits.reshape(SEQUENCES * LENGTH, -1)
    assert logits.dtype == torch.float64 and torch.isfinite(logits).all()
    save_file({"inputs": inputs, "logits": logits.float()}, folder / "golden.safetensors")
    print(name, sum(f.stat().st_size for f in folder.iterdir()), "bytes, logits up to", logits.abs().max().item())


def make_deepseek_v2_router():
    """What DeepSeek-V2's router makes of hidden states that are its logits: its other parts are not supported."""
    from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
    torch.manual_seed(5)
    arrays = {"logits": 3 * torch.randn(64, 12)}
    for name, method, groups, best in [("greedy", "greedy", 1, 1), ("grouped", "group_limited_greedy", 4, 2)]:
        router = DeepseekV2TopkRouter(tf.DeepseekV2Config(
            hidden_size=12, num_attention_heads=4, n_routed_experts=12, num_experts_per_tok=3, routed_scaling_factor=2.5,
            topk_method=method, n_group=groups, topk_group=best))
        with torch.no_grad():
            router.weight.copy_(torch.eye(12))
            _, weights, chosen = router(arrays["logits"])
        gates = torch.zeros(64, 12).scatter_(1, chosen, weights)
        assert (gates > 0).sum() == 64 * 3
        arrays[name] = gates
    save_file(arrays, HERE.parent / "deepseek_v2_router.safetensors")


# ---- OpenMoE, which is not in transformers: written from its papers and the formulas of its JAX code, in NumPy

OPENMOE = dict(architectures=["OpenMoeForCausalLM"], model_type="llama", num_hidden_layers=4, hidden_size=16,
               num_attention_heads=3, num_key_value_heads=3, head_dim=6, vocab_size=37, max_position_embeddings=64,
               intermediate_size=10, num_experts=6, router_topk=2, moe_layer_interval=2, hidden_act="swiglu",
               mlp_gated=True, rms_norm_eps=1e-6, rope_theta=10000.0, tie_word_embeddings=False,
               router_capacity_factor_train=1.25, router_capacity_factor_eval=0.75, router_drop_tks=True)


def openmoe_weights(c, draw):
    D, F, E, P = c["hidden_size"], c["intermediate_size"], c["num_experts"], c["num_attention_heads"] * c["head_dim"]

    def matrix(*shape, inputs):
        return (draw.standard_normal(shape) * 1.2 / inputs ** 0.5).astype(np.float32)

    def gain():
        return (1 + 0.3 * draw.standard_normal(D)).astype(np.float32)

    w = {"model.embed_tokens.weight": matrix(c["vocab_size"], D, inputs=1), "model.norm.weight": gain(),
         "lm_head.weight": matrix(c["vocab_size"], D, inputs=D)}
    for l in range(c["num_hidden_layers"]):
        p = f"model.layers.{l}."
        moe = (l + 1) % c["moe_layer_interval"] == 0
        for n in ["q", "k", "v"]:
            w[p + f"self_attn.{n}_proj.weight"] = matrix(P, D, inputs=D * (2 if n != "v" else 1))
        w[p + "self_attn.o_proj.weight"] = matrix(D, P, inputs=P)
        w[p + "input_layernorm.weight"], w[p + "post_attention_layernorm.weight"] = gain(), gain()
        mlp = p + ("extra_mlp." if moe else "mlp.")
        w[mlp + "gate_proj.weight"], w[mlp + "up_proj.weight"] = matrix(2 * F, D, inputs=D), matrix(F, D, inputs=D)
        w[mlp + "down_proj.weight"] = matrix(D, F, inputs=F)
        if moe:
            w[p + "pre_extra_mlp_layernorm.weight"] = gain()
            w[p + "mlp.gate_weight"] = matrix(E, D, inputs=D)
            w[p + "mlp.experts.wi_gate"] = matrix(E, D, 2 * F, inputs=D)
            w[p + "mlp.experts.wi_up"] = matrix(E, D, F, inputs=D)
            w[p + "mlp.experts.wo"] = matrix(E, F, D, inputs=F)
    return w


def openmoe_logits(c, w, inputs, drop):
    """inputs (S, T), everything recomputed for all positions at once: logits (S * T, vocab). drop: whether an expert
    takes no more than a capacity of all S * T tokens, first choices and earlier tokens first."""
    H, d = c["num_attention_heads"], c["head_dim"]
    S, T = inputs.shape
    K, E = c["router_topk"], c["num_experts"]
    capacity = int(c["router_capacity_factor_eval"] * S * T * K / E)
    capacity = max(4, capacity + capacity % 2) if drop else S * T

    def norm(x, gain):
        return x / np.sqrt((x ** 2).mean(-1, keepdims=True) + c["rms_norm_eps"]) * gain

    def silu(x):
        return x / (1 + np.exp(-x))

    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def block(h, gate, up, down):  # input-major matrices
        a, b = np.split(h @ gate, 2, axis=-1)
        return (a * silu(b) * (h @ up)) @ down

    angles = np.arange(T)[:, None] * c["rope_theta"] ** (-2.0 * np.arange(d // 2) / d)
    turn = np.exp(1j * angles)[:, None, :]

    def rotate(x):
        z = (x[..., :d // 2] + 1j * x[..., d // 2:]) * turn
        return np.concatenate([z.real, z.imag], -1)

    x = w["model.embed_tokens.weight"][inputs.reshape(-1)]
    dropped = 0
    for l in range(c["num_hidden_layers"]):
        p = f"model.layers.{l}."
        h = norm(x, w[p + "input_layernorm.weight"])
        q, k, v = (np.reshape(h @ w[p + f"self_attn.{n}_proj.weight"].T, (S, T, H, d)) for n in "qkv")
        scores = np.einsum("sihd,sjhd->shij", rotate(q), rotate(k))  # no scale
        scores = np.where(np.tril(np.ones((T, T), bool)), scores, -np.inf)
        seen = np.einsum("shij,sjhd->sihd", softmax(scores), v)
        x = x + seen.reshape(S * T, H * d) @ w[p + "self_attn.o_proj.weight"].T
        h = norm(x, w[p + "post_attention_layernorm.weight"])
        dense = p + "mlp."
        if (l + 1) % c["moe_layer_interval"] == 0:
            probability = softmax(h @ w[p + "mlp.gate_weight"].T)
            out, taken = np.zeros_like(x), np.zeros(E, int)
            for rank in range(K):
                for t in range(S * T):
                    e = np.argsort(-probability[t])[rank]
                    taken[e] += 1
                    if taken[e] > capacity:
                        dropped += 1
                        continue
                    out[t] += probability[t, e] * block(h[t], w[p + "mlp.experts.wi_gate"][e],
                                                        w[p + "mlp.experts.wi_up"][e], w[p + "mlp.experts.wo"][e])
            x = x + out
            h = norm(x, w[p + "pre_extra_mlp_layernorm.weight"])
            dense = p + "extra_mlp."
        x = x + block(h, *(w[dense + n + "_proj.weight"].T for n in ["gate", "up", "down"]))
    assert bool(dropped) == drop
    return norm(x, w["model.norm.weight"]) @ w["lm_head.weight"].T


def make_openmoe():
    draw = np.random.default_rng(7)
    folder = HERE / "openmoe"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    weights = openmoe_weights(OPENMOE, draw)
    exact = {name: w.astype(np.float64) for name, w in weights.items()}
    inputs = draw.integers(0, OPENMOE["vocab_size"], (SEQUENCES, LENGTH))
    logits, dropping = (openmoe_logits(OPENMOE, exact, inputs, drop) for drop in [False, True])
    (folder / "config.json").write_text(json.dumps(OPENMOE, indent=2) + "\n")
    save_file({name: torch.from_numpy(w) for name, w in weights.items()}, folder / "model.safetensors")
    save_file({"inputs": torch.from_numpy(inputs), "logits": torch.from_numpy(logits).float(),
               "logits_dropping": torch.from_numpy(dropping).float()}, folder / "golden.safetensors")
    print("openmoe", sum(f.stat().st_size for f in folder.iterdir()), "bytes, logits up to", abs(logits).max())


if __name__ == "__main__":
    tf.logging.set_verbosity_error()
    others = {"openmoe": make_openmoe, "deepseek_v2_router": make_deepseek_v2_router}
    for case in sys.argv[1:] or [*CASES, *others]:
        make(case) if case in CASES else others[case]()
