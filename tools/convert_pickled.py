#!/usr/bin/env python3
"""Makes safetensors of a folder whose weights are pickled (pytorch_model*.bin), as OpenMoE's are.

    python3 tools/convert_pickled.py FOLDER OUT [--dtype bfloat16]

The library never reads a pickle, because a pickle can run any code. Here torch reads it with weights_only, which builds
tensors and refuses everything else; before 2.6 a file could get round that (CVE-2025-32434). One shard is in memory at a time.
Needs torch 2.6 or later and safetensors.
"""
import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", type=Path)
parser.add_argument("out", type=Path)
parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: as it is stored")
given = parser.parse_args()

if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6):
    parser.error(f"expected torch 2.6 or later, which reads pickles safely, got {torch.__version__}")
shards = sorted(given.folder.glob("pytorch_model*.bin"))
if not shards:
    parser.error(f"{given.folder}: expected pytorch_model*.bin, got none")
given.out.mkdir(parents=True, exist_ok=True)
weight_map, total = {}, 0
for i, shard in enumerate(shards, 1):
    name = "model.safetensors" if len(shards) == 1 else f"model-{i:05}-of-{len(shards):05}.safetensors"
    tensors = torch.load(shard, map_location="cpu", weights_only=True, mmap=True)
    # Copies: views of one storage (tied weights) may not share memory in a file.
    tensors = {key: (t.to(getattr(torch, given.dtype)) if given.dtype else t).clone().contiguous()
               for key, t in tensors.items() if isinstance(t, torch.Tensor)}
    save_file(tensors, given.out / name, metadata={"format": "pt"})
    weight_map |= dict.fromkeys(tensors, name)
    total += sum(t.numel() * t.element_size() for t in tensors.values())
    print(f"{shard.name}: {len(tensors)} tensors")
if len(shards) > 1:
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (given.out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
for extra in ["config.json", "tokenizer.json", "spiece.model"]:
    if (given.folder / extra).exists():
        shutil.copy(given.folder / extra, given.out / extra)
