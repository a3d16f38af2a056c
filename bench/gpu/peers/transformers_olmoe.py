#!/usr/bin/env python3
"""A model of OLMoE-1B-7B's shape in Hugging Face transformers, random bf16 weights: decoding and prefill.

    python3 bench/gpu/peers/transformers_olmoe.py [--device cuda|cpu] [--tiny]

Decoding is one token at a time behind 512, from its id to its logits, in every way that this transformers has:
  each implementation of the experts, with a cache that grows
  the same by torch.compile with a static cache, as CUDA graphs where the implementation may be captured
Prefill is 2048 tokens, with each implementation. A way that fails is named and left out; so are ways that would begin after the
time that is left for them. Exit status 77: no GPU, no torch or no transformers with OLMoE.
"""
import inspect
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # kernels that would have to be fetched fail at once

import measure

torch = measure.need("torch")
transformers = measure.need("transformers")

STEPS = 16  # between two looks at the clock


def names_of_experts():
    """Those most likely to run first."""
    try:
        from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
        offered = list(ALL_EXPERTS_FUNCTIONS)
    except ImportError:
        offered = []
    return ["eager"] + sorted(offered, key=lambda name: (name not in ("batched_mm", "grouped_mm"), name))


class Peer:
    def __init__(self, args):
        self.args = args
        self.context, self.prompt = (16, 32) if args.tiny else (512, 2048)
        shape = dict(num_hidden_layers=16, hidden_size=2048, num_attention_heads=16, num_experts=64, num_experts_per_tok=8,
                     intermediate_size=1024, vocab_size=50304)
        if args.tiny:
            shape = dict(num_hidden_layers=2, hidden_size=64, num_attention_heads=2, num_experts=8, num_experts_per_tok=2,
                         intermediate_size=32, vocab_size=256)
        self.config = transformers.OlmoeConfig(max_position_embeddings=4096, pad_token_id=None, eos_token_id=None,
                                               initializer_range=shape["hidden_size"] ** -0.5, **shape)
        torch.manual_seed(1)
        torch.set_default_dtype(torch.bfloat16)
        with torch.device(args.device):
            self.model = transformers.OlmoeForCausalLM(self.config).eval()
        torch.set_default_dtype(torch.float32)
        taken = inspect.signature(transformers.OlmoeForCausalLM.forward).parameters
        self.expected = None  # logits
        self.cache_name = "cache" if "cache" in taken else "past_key_values"

    def ids(self, count):
        return (torch.arange(count, device=self.args.device) * 7919 % self.config.vocab_size)[None]

    def call(self, model, ids, cache, **options):
        return model(input_ids=ids, use_cache=True, **{self.cache_name: cache}, **options).logits

    def prefill(self, experts):
        """Tokens per second."""
        self.model.set_experts_implementation(experts)
        ids = self.ids(self.prompt)
        work = lambda: self.call(self.model, ids, transformers.DynamicCache(config=self.config), logits_to_keep=1)
        return self.prompt / measure.median_time(work, self.args, runs=5)

    def decode(self, experts, **compiled):
        """Tokens per second; with options of torch.compile compiled."""
        self.model.set_experts_implementation(experts)
        if compiled:
            torch._dynamo.reset()
            cache = transformers.StaticCache(config=self.config, max_cache_len=self.context + STEPS)
            step = torch.compile(self.model, dynamic=False, **compiled)
        else:
            cache = transformers.DynamicCache(config=self.config)
            step = self.model
        self.call(self.model, self.ids(self.context), cache, logits_to_keep=1)
        token = self.ids(2)[:, 1:]
        logits = []

        def work():
            if compiled:
                for layer in cache.layers:
                    layer.cumulative_length.fill_(self.context)
            for _ in range(STEPS):
                if compiled:
                    torch.compiler.cudagraph_mark_step_begin()
                answer = self.call(step, token, cache)
                if not logits:
                    logits.append(answer.float().clone())
            if not compiled:
                cache.crop(-STEPS)

        rate = STEPS / measure.median_time(work, self.args, runs=7)
        self.expected = logits[0] if self.expected is None else self.expected
        apart = float((logits[0] - self.expected).norm() / self.expected.norm())
        print(f"decode, {experts}: logits {apart:.2g} of their norm from those of the first way", file=sys.stderr)
        if not apart < 0.5:  # one expert or another may be a near tie
            raise ArithmeticError(f"logits {apart:.2g} of their norm from those of the first way")
        return rate


def main():
    args = measure.options(__doc__)
    if not hasattr(transformers, "OlmoeForCausalLM"):
        measure.skip(f"transformers {transformers.__version__} has no OLMoE")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}", file=sys.stderr)
    peer = Peer(args)
    rates = {"decode": {}, "prefill": {}}

    def timed(kind, way, work):
        rate = measure.attempt(f"transformers {kind}, {way}", work)
        if rate:
            rates[kind][way] = rate
            measure.line(f"transformers {kind}, {way}", rate, "tokens/s")
        return rate

    with torch.no_grad():
        runnable = []
        for experts in names_of_experts():
            if timed("decode", experts, lambda: peer.decode(experts)):
                runnable.append(experts)
            # It gathers a matrix of weights for every choice: of a prompt's that would be hundreds of gigabytes.
            if experts != "batched_mm":
                timed("prefill", experts, lambda: peer.prefill(experts))
        for experts in runnable[1:]:  # the loop of "eager" over what was chosen is none for a compiler
            mode = "default" if experts == "grouped_mm" else "reduce-overhead"  # it may not be captured
            for fullgraph in (True, False):
                way = f"{experts}, compiled, {mode}{', fullgraph' if fullgraph else ''}"
                if measure.elapsed() > 90 and not args.tiny:
                    print(f"transformers decode, {way}: not tried: no time left", file=sys.stderr)
                elif timed("decode", way, lambda: peer.decode(experts, mode=mode, fullgraph=fullgraph)):
                    break
            skipped = torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]
            if skipped and args.device == "cuda":
                print(f"{skipped} graphs of {experts} were not captured", file=sys.stderr)
    for kind in rates:
        if rates[kind]:
            measure.line(f"peer transformers {kind}", max(rates[kind].values()), "tokens/s")
    if not rates["decode"]:
        sys.exit("failed: no way of decoding ran")


if __name__ == "__main__":
    main()
