#!/usr/bin/env python3
"""A folder of OLMoE-1B-7B's shape with random weights, as transformers writes it, for `./run bench load`.

    bench/load/make_olmoe.py FOLDER [--layers L --dim D --heads H --ffn F --experts E --vocab V] [--shard BYTES]

Without options: 6,919,161,856 weights in bf16, 13.8 GB in three files of at most 5 GB with an index, each as long as the
published one. Tensors go to files in the order of the model's modules; within a file they stand sorted by name, as
safetensors writes them. Nothing but Python is needed, and a few megabytes of memory. The same arguments give the same
bytes.
"""
import argparse
import json
import os
import random
import struct
import sys

PIECE = 1 << 21  # elements drawn at a time
# A bf16's high byte holds the sign and seven bits of the exponent, its low byte the eighth and the mantissa. With 0x3C or
# 0xBC above any low byte, magnitudes are from 2^-7 to 2^-5: a standard deviation of 0.018, near OLMoE's first weights (0.02).
SIGNED = bytes(0x3C | (byte & 0x80) for byte in range(256))


def tensors(a):
    """(name, shape) of all weights, in the order of the modules of OlmoeForCausalLM."""
    yield "model.embed_tokens.weight", (a.vocab, a.dim)
    for layer in range(a.layers):
        p = f"model.layers.{layer}."
        for matrix in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield f"{p}self_attn.{matrix}.weight", (a.dim, a.dim)
        for norm in ("q_norm", "k_norm"):
            yield f"{p}self_attn.{norm}.weight", (a.dim,)
        yield f"{p}mlp.gate.weight", (a.experts, a.dim)
        for expert in range(a.experts):
            yield f"{p}mlp.experts.{expert}.gate_proj.weight", (a.ffn, a.dim)
            yield f"{p}mlp.experts.{expert}.up_proj.weight", (a.ffn, a.dim)
            yield f"{p}mlp.experts.{expert}.down_proj.weight", (a.dim, a.ffn)
        yield f"{p}input_layernorm.weight", (a.dim,)
        yield f"{p}post_attention_layernorm.weight", (a.dim,)
    yield "model.norm.weight", (a.dim,)
    yield "lm_head.weight", (a.vocab, a.dim)


def size_of(shape):
    """Elements."""
    size = 1
    for extent in shape:
        size *= extent
    return size


def shards(listed, most):
    """The tensors of each file: a new one begins where the next tensor would make it larger than `most` bytes."""
    out, bytes_there = [[]], 0
    for name, shape in listed:
        size = 2 * size_of(shape)
        if out[-1] and bytes_there + size > most:
            out.append([])
            bytes_there = 0
        out[-1].append((name, shape))
        bytes_there += size
    return out


def write_elements(file, name, shape):
    """Ones for norms, else random signs and magnitudes, drawn from the name."""
    draw = random.Random(name)
    left = size_of(shape)
    while left > 0:
        count = min(left, PIECE)
        left -= count
        if "norm" in name:
            file.write(b"\x80\x3f" * count)
            continue
        piece = bytearray(2 * count)
        piece[0::2] = draw.randbytes(count)
        piece[1::2] = draw.randbytes(count).translate(SIGNED)
        file.write(piece)


def write_shard(path, listed):
    listed = sorted(listed)
    entries, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in listed:
        begin, end = end, end + 2 * size_of(shape)
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for name, shape in listed:
            write_elements(file, name, shape)


def write_json(path, value):
    with open(path, "w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")


def main():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("folder")
    published = {"layers": 16, "dim": 2048, "heads": 16, "ffn": 1024, "experts": 64, "vocab": 50304, "shard": 5 * 10**9}
    for name, value in published.items():
        parse.add_argument(f"--{name}", type=int, default=value)
    a = parse.parse_args()
    for name in published:
        if getattr(a, name) < 1:
            sys.exit(f"--{name}: expected a whole number of 1 or more, got {getattr(a, name)}")
    os.makedirs(a.folder, exist_ok=True)

    write_json(os.path.join(a.folder, "config.json"), {
        "architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", "attention_bias": False, "clip_qkv": None,
        "hidden_act": "silu", "hidden_size": a.dim, "intermediate_size": a.ffn, "max_position_embeddings": 4096,
        "norm_topk_prob": False, "num_attention_heads": a.heads, "num_experts": a.experts, "num_experts_per_tok": 8,
        "num_hidden_layers": a.layers, "num_key_value_heads": a.heads, "rms_norm_eps": 1e-05, "rope_scaling": None,
        "rope_theta": 10000.0, "router_aux_loss_coef": 0.01, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "vocab_size": a.vocab})
    files = shards(tensors(a), a.shard)
    index = {}
    for i, listed in enumerate(files, 1):
        file = f"model-{i:05}-of-{len(files):05}.safetensors"
        write_shard(os.path.join(a.folder, file), listed)
        index.update((name, file) for name, _ in listed)
        print(f"{file}: {len(listed)} tensors", flush=True)
    total = 2 * sum(size_of(shape) for name, shape in tensors(a))
    write_json(os.path.join(a.folder, "model.safetensors.index.json"),
               {"metadata": {"total_size": total}, "weight_map": index})


if __name__ == "__main__":
    main()
