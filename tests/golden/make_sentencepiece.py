#!/usr/bin/env python3
"""Writes tests/golden/sentencepiece: two small SentencePiece models, trained on the library's own README, and what the
package `sentencepiece` makes of the texts of make_tokenizers.py.

    bpe.model         as Llama 2 and Mixtral have it: BPE, digits alone, bytes for what is unknown, no normalising
    unigram.model     as umT5 (OpenMoE) has it: unigram, padding before eos, no bos, normalised, here by a few rules
    texts.safetensors texts (bytes, one after the other), ends; for each model NAME.ids, NAME.ends, and what decodes from
                      them, NAME.texts, NAME.text_ends
"""
import tempfile
from pathlib import Path

import numpy as np
import sentencepiece as spm
from make_tokenizers import OWN_TEXTS, texts
from safetensors.numpy import save_file

HERE = Path(__file__).parent
MODELS = {"bpe": dict(model_type="bpe", normalization_rule_name="identity", split_digits=True,
                      remove_extra_whitespaces=False, allow_whitespace_only_pieces=True),
          "unigram": dict(model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)}


def train(name, path, files=OWN_TEXTS, tokens=640, **more):
    """A model in path.model, which is returned; MODELS[name] has what is left to the package here."""
    spm.SentencePieceTrainer.Train(**dict(
        model_prefix=str(path), input=files, vocab_size=tokens, byte_fallback=True, num_threads=1, minloglevel=2,
        user_defined_symbols=["<|user|>"], max_sentence_length=100_000, **MODELS[name], **more))
    path.with_suffix(".vocab").unlink()
    return path.with_suffix(".model")


def train_small():
    train("bpe", HERE / "sentencepiece/bpe")
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as rules:
        for number in range(0xFF01, 0xFF5F):  # full-width forms
            rules.write(f"{number:X}\t{number - 0xFEE0:X}\n")
        rules.write("FB01\t66 69\n9\t20\nA\t20\nD\t20\nA0\t20\nE9\t65\n")
        rules.flush()
        train("unigram", HERE / "sentencepiece/unigram", normalization_rule_tsv=rules.name)


def write():
    (HERE / "sentencepiece").mkdir(exist_ok=True)
    arrays = {}

    def add(name, ends, items, dtype):
        arrays[name] = np.array([x for item in items for x in item], dtype)
        arrays[ends] = np.cumsum([len(i) for i in items]).astype(np.int32)

    items = [t for t in texts() if "\0" not in t] + ["  two  spaces", "<s> </s>a<|user|>b", "\uff21\ufb01\ta\nb", "▁▁x"]
    add("texts", "ends", [t.encode() for t in items], np.uint8)
    train_small()
    for name in MODELS:
        words = spm.SentencePieceProcessor(model_file=str(HERE / "sentencepiece" / f"{name}.model"))
        ids = [words.encode(t) for t in items]
        add(f"{name}.ids", f"{name}.ends", ids, np.int32)
        add(f"{name}.texts", f"{name}.text_ends", [words.decode(i).encode() for i in ids], np.uint8)
    save_file(arrays, HERE / "sentencepiece" / "texts.safetensors")
    print({p.name: p.stat().st_size for p in (HERE / "sentencepiece").iterdir()})


if __name__ == "__main__":
    write()
