"""Greedy decoding on the CPU, beside the reference in torch: GPT-2 124M, random weights, float32.

    python benchmarks/decode.py                      64 new tokens after prompts of 32, batch 1 and batch 8
    python benchmarks/decode.py --serve --batch 8    our half of it alone (harness.py says how they speak)
    python benchmarks/decode.py --memory             temporaries of the compiled loop, and what compiling took

The floor of a token is one reading of the parameters at the measured bandwidth. `--form scanned` leaves the
blocks stacked, as they are decoded on everything but one CPU.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import jax
import numpy as np
from harness import System, compare, serve

from jaxformer.config import (
    AttentionConfig,
    BlockConfig,
    InputConfig,
    LearnedConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
    StackConfig,
)
from jaxformer.generation import decode, generate, prompts
from jaxformer.nn.model import Model

PROMPT, NEW = 32, 64
BIASES = ("query", "key", "value", "out")
BLOCK = BlockConfig(AttentionConfig(12, 12, 64, bias=BIASES), MlpConfig(3072, "gelu_tanh"))
CONFIG = ModelConfig(
    50257, 768, decoder=StackConfig((BLOCK,), 12, True, InputConfig(LearnedConfig(1024)), NormConfig())
)


def model_and_params():
    model = Model(CONFIG, compute="float32")
    init = jax.jit(lambda key: model.init(key, np.zeros((1, 2), np.int32))["params"])
    return model, jax.block_until_ready(init(jax.random.key(0)))


def leave_stacked(variables):
    return variables


def serve_decoding(batch: int, form: str) -> None:
    if form == "scanned":
        prompts.per_layer = leave_stacked
    model, params = model_and_params()
    prompt = np.random.default_rng(0).integers(CONFIG.vocab, size=(batch, PROMPT))

    def step() -> None:
        result = generate(model, params, prompt, NEW, eos=(), key=jax.random.key(0))
        assert result.tokens.shape == (batch, NEW)

    sizes = {path: leaf.nbytes for path, leaf in jax.tree.leaves_with_path(params)}
    looked_up = params["decoder"]["position"]["embedding"].nbytes  # a token looks up one position
    serve(
        step,
        tokens=NEW * batch,
        bytes=float(sum(sizes.values()) - looked_up) * NEW,
        form=form,
        jax=jax.__version__,
    )


def memory() -> None:
    """Temporaries of the loop over 128 slots at batch 1, in both forms."""
    model, params = model_and_params()
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    for form, per_layer in (("listed", prompts.per_layer), ("scanned", leave_stacked)):
        prompts.per_layer = per_layer
        prompt = np.zeros((1, 64), np.int32)
        state, request = decode.start(model, params, prompt, 64, None, decode.Greedy(), (), None, 1, None, None)
        start = time.perf_counter()
        compiled = decode.steps.lower(model, state, request, np.int32(64)).compile()
        seconds, temporary = time.perf_counter() - start, compiled.memory_analysis().temp_size_in_bytes
        print(json.dumps({"form": form, "temporaries": temporary / total, "compile_seconds": seconds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--batch", type=int, default=1, help="rows to decode")
    parser.add_argument("--form", choices=["listed", "scanned"], default="listed")
    parser.add_argument("--pairs", type=int, default=9, help="pairs to keep")
    args = parser.parse_args()
    if args.memory:
        return memory()
    if args.serve:
        return serve_decoding(args.batch, args.form)
    here = Path(__file__)
    for batch in (1, 8):
        ours = (sys.executable, str(here), "--serve", "--batch", str(batch), "--form", args.form)
        theirs = (sys.executable, str(here.with_name("reference_torch.py")), "decode", "--batch", str(batch))
        print(compare(f"decode_batch_{batch}", System("jaxformer", ours), System("torch", theirs), args.pairs))


if __name__ == "__main__":
    main()
