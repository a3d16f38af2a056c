#!/usr/bin/env python3
"""Writes tests/golden/tokenizers: small byte-level BPE tokenizers, trained on the library's own README, and what the
package `tokenizers` makes of texts.

NAME.json         a tokenizer as its models have it, but of 700 tokens
texts.safetensors texts (bytes, one after the other), ends; for each tokenizer NAME.ids, NAME.ends
"""
import json
import random
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

HERE = Path(__file__).parent
OWN_TEXTS = [str(HERE.parent.parent / "README.md"), str(HERE.parent.parent / "docs/design.md")]
NEWER = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def build(name, files=OWN_TEXTS, tokens=640):
    t = Tokenizer(models.BPE(ignore_merges=name == "llama3"))
    if name == "olmoe":
        t.normalizer = normalizers.NFC()
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    else:
        if name == "qwen2":
            t.normalizer = normalizers.NFC()
        number = r"\p{N}{1,3}" if name == "llama3" else r"\p{N}"
        t.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(NEWER % number), "isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=tokens, special_tokens=["<|endoftext|>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    t.train(files, trainer)
    t.add_special_tokens(["<|im_start|>", "<|im_start|>x"])
    if name == "olmoe":  # GPT-NeoX's runs of spaces, found after normalising
        t.add_tokens([AddedToken(" " * n, normalized=True) for n in range(12, 1, -1)])
        t.add_tokens([AddedToken("|||IP_ADDRESS|||", normalized=False)])
    return t


def random_text(draw, more_kinds=()):
    marks = ["\u0301", "\u0323", "\u3099", "\u0345", "\u0327"]
    kinds = [lambda: chr(draw.randrange(0x20, 0x7F)), lambda: draw.choice(" \t\n\r\n  \u00a0\u2003\u0085"),
             lambda: draw.choice("'stmdTSDlLrReEvV\u017f"), lambda: chr(draw.randrange(0xA0, 0x590)),
             lambda: chr(draw.choice([c for c in [draw.randrange(0x110000)] if not 0xD800 <= c < 0xE000] or [0x41])),
             lambda: draw.choice("0123456789\u0663\u2167\u00bd"), lambda: draw.choice(marks),
             lambda: chr(draw.randrange(0x1100, 0x1200)), lambda: chr(draw.randrange(0xAC00, 0xD7A4)),
             lambda: draw.choice(["<|endoftext|>", "<|im_start|>", "<|im_start|>x", "|||IP_ADDRESS|||", "<|im", "  "]),
             lambda: chr(draw.randrange(0x4E00, 0x9FFF)), lambda: chr(draw.randrange(0x1F300, 0x1F700)), *more_kinds]
    few = draw.sample(kinds, draw.randint(1, 5))
    return "".join(draw.choice(few)() for _ in range(draw.randint(0, 40)))


def texts():
    draw = random.Random(11)
    fixed = ["", " ", "a", "Hello world", "don't WE'LL they'RE I'\u017fve 'S", "x  y\n\n  z \t\r\n w   ", "12345 1234567",
             "na\u00efve cafe\u0301 \u1e9b\u0323 \u3042\u3099", "<|endoftext|> a<|im_start|>xb<|im_start|>",
             "    four     five", "def f(x):\n    return x + 1\n", "a" * 100 + "\n" * 60 + " " * 70, "\u200b\ufeff\u00ad",
             "\U0001F469\u200D\U0001F469\u200D\U0001F467 \u4f60\u597d\uff0c\u4e16\u754c", "\x00\x01\x7f"]
    return fixed + [random_text(draw) for _ in range(150)]


def write():
    out = HERE / "tokenizers"
    out.mkdir(exist_ok=True)
    arrays = {}

    def add(name, items, dtype):
        arrays[name] = np.array([x for item in items for x in item], dtype)
        arrays[name.rsplit(".", 1)[0] + ".ends" if "." in name else "ends"] = np.cumsum([len(i) for i in items]).astype(
            np.int32)

    add("texts", [t.encode() for t in texts()], np.uint8)
    for name in NAMES:
        t = build(name)
        document = json.loads(t.to_str())
        (out / f"{name}.json").write_text(json.dumps(document, ensure_ascii=False, separators=(",", ":")))
        t = Tokenizer.from_file(str(out / f"{name}.json"))
        add(f"{name}.ids", [t.encode(x, add_special_tokens=False).ids for x in texts()], np.int32)
        for x in texts():  # decoding gives the text, but for what normalising changed
            ids = t.encode(x, add_special_tokens=False).ids
            assert t.normalizer or t.decode(ids, skip_special_tokens=False) == x
    save_file(arrays, out / "texts.safetensors")
    print({p.name: p.stat().st_size for p in out.iterdir()})


NAMES = ["olmoe", "llama3", "qwen2"]
if __name__ == "__main__":
    write()
