#!/usr/bin/env python3
"""Compares the library's tokenizers with the Python packages `tokenizers` and `sentencepiece`: every id, and the text
that decodes from them, of whole files and of 100,000 random Unicode strings. Says how fast both are, in CPU time of one
thread.

    python3 tests/golden/check_tokenizers.py tokenizers    ENCODE_TEXTS  FILE ...
    python3 tests/golden/check_tokenizers.py sentencepiece ENCODE_PIECES FILE ...

ENCODE_TEXTS, ENCODE_PIECES: encode_texts.cpp and encode_pieces.cpp, compiled. Each kind of tokenizer is taken with the
few tokens of the golden files, and with 16,000 trained on the first FILE.
"""
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from make_tokenizers import random_text
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).parent
TOKENS = 16_000
PART = 1 << 16  # characters; a file is taken in parts of about so many, which end with a line


def never(got, want):
    return False


def of_tokenizers(files, folder):
    """Of each tokenizer: name, file, the package's encode and decode, and which other ids are as good."""
    from make_tokenizers import NAMES, build
    from tokenizers import Tokenizer
    for name in NAMES:
        large = folder / f"{name}.json"
        build(name, files[:1], TOKENS).save(str(large))
        for path in HERE / "tokenizers" / f"{name}.json", large:
            t = Tokenizer.from_file(str(path))
            yield (name, path, lambda x: t.encode(x, add_special_tokens=False).ids,
                   lambda ids: t.decode(ids, skip_special_tokens=False), never)


def of_sentencepiece(files, folder):
    import sentencepiece
    from make_sentencepiece import MODELS, train
    for name in MODELS:  # without more options, unigram normalises as the package does and umT5: nmt_nfkc
        for path in HERE / "sentencepiece" / f"{name}.model", train(name, folder / name, files[:1], TOKENS):
            words = sentencepiece.SentencePieceProcessor(model_file=str(path))
            score = np.array([words.get_score(i) for i in range(words.get_piece_size())])

            def as_probable(got, want):
                """Versions from 0.2.2 on choose otherwise than earlier ones between "+ ++" and "++ +"; their sums of
                log-probabilities are float32."""
                return abs(score[got].sum() - score[want].sum()) <= 1e-6 * abs(score[want].sum())

            yield name, path, words.encode, words.decode, as_probable if name == "unigram" else never


def parts(file):
    part = ""
    for line in Path(file).read_bytes().decode().splitlines(keepends=True):
        part += line
        if len(part) >= PART:
            yield part
            part = ""
    yield part


def random_texts():
    draw = random.Random(12)
    more = [lambda: chr(draw.randrange(0x20)), lambda: chr(draw.randrange(0x7F, 0xA0)),
            lambda: chr(draw.randrange(0x300, 0x370)), lambda: draw.choice(" \t\n\u2028\u3000") * draw.randint(1, 20),
            lambda: chr(draw.randrange(1, 17) << 16 | draw.randrange(0x10000)),
            lambda: chr(draw.randrange(0xF900, 0xFFFF)), lambda: draw.choice(["\u2581", "\u2581\u2581", "\u2047"]),
            lambda: draw.choice(["<|user|>", "<s>", "</s>", "<unk>", "<pad>", "<0x41>"])]
    return [random_text(draw, more) for _ in range(100_000)]


def seconds(work):
    """What work() returns, and its CPU seconds."""
    begin = time.process_time()
    return work(), time.process_time() - begin


def run(program, path, texts, folder):
    """Ids and decoded texts, and the seconds for both."""
    encoded = [x.encode() for x in texts]
    save_file({"texts": np.frombuffer(b"".join(encoded), np.uint8),
               "ends": np.cumsum([len(e) for e in encoded]).astype(np.int64)}, folder / "in.safetensors")
    said = subprocess.run([program, path, folder / "in.safetensors", folder / "out.safetensors"], check=True,
                          capture_output=True, text=True).stdout
    out = load_file(folder / "out.safetensors")
    return (np.split(out["ids"], out["ends"][:-1]), np.split(out["texts"], out["text_ends"][:-1]),
            [float(x) for x in said.split()])


def main(package, program, files):
    of_files = [p for f in files for p in parts(f)]
    texts = of_files + random_texts()
    size = sum(len(x.encode()) for x in of_files) / 1e6
    kinds = {"tokenizers": of_tokenizers, "sentencepiece": of_sentencepiece}[package]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name, path, encode, decode, as_good in kinds(files, folder):
            ids, decoded, _ = run(program, path, texts, folder)
            expected, encoding = seconds(lambda: [encode(x) for x in of_files])
            _, decoding = seconds(lambda: [decode(i) for i in expected])
            expected += [encode(x) for x in texts[len(of_files):]]
            otherwise = 0
            for text, got, want, back in zip(texts, ids, expected, decoded, strict=True):
                if not np.array_equal(got, want):
                    assert as_good(got, want), (name, text[:200], got[:50].tolist(), want[:50])
                    otherwise += 1
                assert back.tobytes() == decode(want).encode(), (name, text[:200], back.tobytes()[:400])
            own = run(program, path, of_files, folder)[2]
            print(f"{name}, {sum(map(len, ids))} ids of {len(texts)} texts: {otherwise} texts cut otherwise but as "
                  f"probably, all others equal; MB/s of files: "
                  f"encode {size / own[0]:.2f}, {package} {size / encoding:.2f}; "
                  f"decode {size / own[1]:.0f}, {package} {size / decoding:.1f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
