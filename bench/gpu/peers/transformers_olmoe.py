#!/usr/bin/env python3
"""A model of OLMoE-1B-7B's shape in Hugging Face transformers, random bf16 weights: decoding and prefill.

    python3 bench/gpu/peers/transformers_olmoe.py [--device cuda|cpu] [--tiny]

Decoding is one token at a time behind 512, from its id to its logits. First, since these are what counts, the ways that
are compiled: torch.compile with a static cache and each implementation of the experts that this transformers has, as
CUDA graphs where the implementation may be captured. Then each implementation as it is, with a cache that grows, and
the prefill of 2048 tokens with each. A way that fails, or would begin with too little time left, is a line that says
so.
  peer transformers decode, compiled with a static cache     the fastest of the first; without one this peer fails
  peer transformers decode, any way                          the fastest of all
Exit status 77: no GPU, no torch or no transformers with OLMoE.
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
    return sorted(offered, key=lambda name: (name not in ("batched_mm", "grouped_mm"), name))


class Peer:
    def __init__(self, args):
        self.args = args
        self.context, self.prompt = (16, 32) if args.tiny else (512, 2048)
        shape = dict(num_hidden_layers=16, hidden_size=2048, num_attention_heads=16, num_experts=64,
                     num_experts_per_tok=8, intermediate_size=1024, vocab_size=50304)
        if args.tiny:
            shape = dict(num_hidden_layers=2, hidden_size=64, num_attention_heads=2, num_experts=8,
                         num_experts_per_tok=2, intermediate_size=32, vocab_size=256)
        self.config = transformers.OlmoeConfig(max_position_embeddings=4096, pad_token_id=None, eos_token_id=None,
                                               initializer_range=shape["hidden_size"] ** -0.5, **shape)
        torch.manual_seed(1)
        torch.set_default_dtype(torch.bfloat16)
        with torch.device(args.device):
            self.model = transformers.OlmoeForCausalLM(self.config).eval()
        torch.set_default_dtype(torch.float32)
        taken = inspect.signature(transformers.OlmoeForCausalLM.forward).parameters
        self.cache_name = "cache" if "cache" in taken else "past_key_values"
        self.model.set_experts_implementation("eager")
        cache = transformers.DynamicCache(config=self.config)
        self.call(self.model, self.ids(self.context), cache, logits_to_keep=1)
        self.expected = self.call(self.model, self.ids(2)[:, 1:], cache).float()  # logits

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
        apart = float((logits[0] - self.expected).norm() / self.expected.norm())
        print(f"decode, {experts}: logits {apart:.2g} of their norm from those of eager experts", file=sys.stderr)
        if not apart < 0.5:  # one expert or another may be a near tie
            raise ArithmeticError(f"logits {apart:.2g} of their norm from those of eager experts")
        return rate


COMPILED = "peer transformers decode, compiled with a static cache"


def main():
    args = measure.options(__doc__)
    if not hasattr(transformers, "OlmoeForCausalLM"):
        measure.skip(f"transformers {transformers.__version__} has no OLMoE")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}", file=sys.stderr)
    best = {}

    def timed(way, summaries, seconds, work):
        """A way that may take so many seconds; whether it ran. Summaries are told where it is the fastest so far."""
        if not args.tiny and not measure.time_left(seconds):
            measure.failed(way, "not tried: no time left")
            return False
        rate = measure.attempt(way, work)
        if rate:
            measure.line(way, rate, "tokens/s")
            for what in summaries:
                if rate > best.get(what, 0):
                    best[what] = rate
                    measure.line(what, rate, "tokens/s")
        return bool(rate)

    with torch.no_grad():
        peer = Peer(args)
        any_way = "peer transformers decode, any way"
        for experts in names_of_experts():
            mode = "default" if experts == "grouped_mm" else "reduce-overhead"  # it may not be captured
            for fullgraph in (True, False):
                way = f"transformers decode, {experts}, compiled, {mode}{', fullgraph' if fullgraph else ''}"
                if timed(way, (COMPILED, any_way), 120,
                         lambda: peer.decode(experts, mode=mode, fullgraph=fullgraph)):
                    break
            skipped = torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]
            if skipped and args.device == "cuda":
                print(f"{skipped} graphs of {experts} were not captured", file=sys.stderr)
        for experts in names_of_experts() + ["eager"]:
            timed(f"transformers decode, {experts}", (any_way,), 20, lambda: peer.decode(experts))
            # It gathers a matrix of weights for every choice: of a prompt's that would be hundreds of gigabytes.
            if experts != "batched_mm":
                timed(f"transformers prefill, {experts}", ("peer transformers prefill",), 20,
                      lambda: peer.prefill(experts))
    if COMPILED not in best:
        measure.failed(COMPILED, "no compiled way ran")
        sys.exit(1)


if __name__ == "__main__":
    main()
