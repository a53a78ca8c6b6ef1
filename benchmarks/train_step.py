"""One training step on the CPU, beside the reference in torch: GPT-2 124M, 4 x 256 tokens, float32, AdamW.

    python benchmarks/train_step.py                  pairs of steps, one process a system
    python benchmarks/train_step.py --serve          our half of it alone (harness.py says how they speak)

The floor is 6 FLOP a parameter and token at the measured rate of matrix products (attention's scores not counted).
"""

import argparse
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from harness import System, compare, serve

from jaxformer import sharding
from jaxformer.families import gpt2
from jaxformer.nn.model import Model
from jaxformer.optimizer import OptimizerConfig, make_optimizer
from jaxformer.tasks.causal_lm import CausalLM
from jaxformer.train.state import TrainState
from jaxformer.train.step import make_step

ROWS, LENGTH = 4, 256
CONFIG = gpt2.SIZES["gpt2"]


def serve_training(remat: str, unroll: int) -> None:
    model = Model(CONFIG, compute="float32", remat=remat, unroll=unroll)
    params = sharding.init(model, jax.random.key(0))
    optimizer = make_optimizer(OptimizerConfig(peak_lr=3e-4, warmup_steps=1), 1000)
    state = TrainState(step=jnp.int32(0), params=params, opt_state=jax.jit(optimizer.init)(params))
    rows = np.random.default_rng(0).integers(CONFIG.vocab, size=(ROWS, LENGTH + 1)).astype(np.int32)
    batch = {
        "tokens": rows,
        "segments": np.ones_like(rows),
        "positions": np.broadcast_to(np.arange(LENGTH + 1, dtype=np.int32), rows.shape),
        "weights": np.ones((ROWS, LENGTH), np.float32),
    }
    step = jax.jit(make_step(CausalLM().loss(model, train=True), optimizer), donate_argnums=0)
    start = time.perf_counter()
    compiled = step.lower(state, None, batch).compile()
    seconds = time.perf_counter() - start
    held = {"state": state}

    def one() -> None:
        held["state"], metrics = compiled(held["state"], None, batch)
        assert np.isfinite(jax.device_get(metrics)["loss"][0])

    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    tokens = ROWS * LENGTH
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    about = {"jax": jax.__version__, "remat": remat, "unroll": unroll, "temporaries": temporaries}
    serve(one, tokens=tokens, work=[(6.0 * parameters * tokens, 0.0)], compile_seconds=seconds, **about)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--remat", choices=["none", "dots", "full"], default="none")
    parser.add_argument("--unroll", type=int, default=12, help="layers compiled as one piece: 12 is the fastest here")
    parser.add_argument("--pairs", type=int, default=9, help="pairs to keep")
    args = parser.parse_args()
    if args.serve:
        return serve_training(args.remat, args.unroll)
    here = Path(__file__)
    ours = (sys.executable, str(here), "--serve", "--remat", args.remat, "--unroll", str(args.unroll))
    theirs = (sys.executable, str(here.with_name("reference_torch.py")), "train")
    print(compare("train_step", System("jaxformer", ours), System("torch", theirs), args.pairs))


if __name__ == "__main__":
    main()
