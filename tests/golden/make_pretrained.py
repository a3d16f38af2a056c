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


if __name__ == "__main__":
    tf.logging.set_verbosity_error()
    for case in sys.argv[1:] or CASES:
        make(case)
