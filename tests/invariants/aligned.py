"""What the processes of test_processes_alignment.py run, one task after the other: this file is their configuration,
too.

    TASKS="ppo classify ppo:2" START=FOLDER DATA=FILE python aligned.py aligned.py --folder RUNS [OPTION ...]

A number behind a task is a step to replay; "drawn" is no task, but tokens by what tasks do without. In RUNS/I.jsonl
process I notes what it gives and reads when tokens are drawn, rows are predicted and answers rewarded.
"""

import json
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer import cli, distributed, fitting
from jaxformer.align import GRPO, PPO, FunctionReward, ModelReward, reward, rollout
from jaxformer.experiment import Experiment
from jaxformer.generation import Beam, Greedy, Lookup, Sample, generate, stream_tokens
from jaxformer.generation.hosted import Hosted
from jaxformer.optimizer import OptimizerConfig
from jaxformer.sharding import MeshConfig, make_mesh
from jaxformer.source import from_pretrained
from jaxformer.tasks import Classify, Seq2Seq, classify, seq2seq
from jaxformer.text.corpus import DataConfig

STYLE = {"group": 2, "answer_length": 6}
LISTED = FunctionReward("listed")


def config():
    """The experiment of the environment's TASK."""
    start, name = Path(os.environ["START"]), os.environ["TASK"]
    judge = ModelReward(str(start / "judge"), rows=4, length=32)
    task = {
        "grpo": GRPO((LISTED,), **STYLE, beta=0.1),
        "ppo": PPO((LISTED, judge), **STYLE, epochs=2, minibatches=2, target=2.0, horizon=100.0),
        "classify": Classify(text="prompt", label="label", labels=("odd", "even")),
        "seq2seq": Seq2Seq("prompt", "target", target_length=8, measures=("chrf", "exact")),
    }[name]
    reward("listed")(listed)
    if name in ("classify", "seq2seq"):
        kind = {"start": str(start / name)}
    else:
        kind = {"start": str(start / "policy"), "prompts": ("the quick", "over")}
    return Experiment(
        name,
        **kind,
        task=task,
        data=DataConfig((os.environ["DATA"],), held_out=4),
        optimizer=OptimizerConfig(peak_lr=1e-2, warmup_steps=1, schedule="constant", weight_decay=0.0),
        rows=4,
        length=16,
        steps=2,
        save_every=1,
        prompt_tokens=4,
    )


def listed(prompts, answers, records):
    """How many kinds of letters an answer has."""
    note("asked", answers)
    if jax.process_index() == 0 and "FAIL" in os.environ:
        raise ValueError("the judge is out")
    found = jnp.float32([len(set(text)) / (1 + len(text)) for text in answers])
    note("devices", len(found.devices()))
    return found


def note(*what):
    folder = Path(sys.argv[sys.argv.index("--folder") + 1])
    with (folder / f"{jax.process_index()}.jsonl").open("a") as file:
        file.write(json.dumps([os.environ["TASK"], *what]) + "\n")


def noted(module, name):
    """Note from now on what share of the parameters one device has where module.name runs, and what it says."""
    call = getattr(module, name)

    def noting(given, params, *more, **named):
        leaves, device = jax.tree.leaves(params), jax.local_devices()[0]
        here = [shard.data.nbytes for x in leaves for shard in x.addressable_shards if shard.device == device]
        found = call(given, params, *more, **named)
        said = [x.argmax() for x in found] if isinstance(found, list) else found.tokens
        note(name, sum(here) / sum(x.nbytes for x in leaves), [x.tolist() for x in said])
        return found

    setattr(module, name, noting)


def drawn():
    """Tokens by several strategies, as they come, asked of the host, and by a key of the system's."""
    model, params, _ = from_pretrained(Path(os.environ["START"]) / "policy", mesh=make_mesh(MeshConfig(1, fsdp=-1)))
    ids = np.arange(model.config.vocab)
    given = Hosted(lambda tokens: (ids == 5 + len(tokens), False))
    new = lambda strategy: generate(model, params, [[5, 6, 7], [8, 9]], 4, strategy=strategy, eos=()).tokens.tolist()
    for strategy in (Beam(2), Lookup(), Greedy(processors=[given])):
        note("drawn", new(strategy))
    note("drawn", [column.tolist() for column in stream_tokens(model, params, [[5, 6, 7], [8, 9]], 4, eos=())])
    note("by chance", new(Sample(1.0)))


def main():
    for module, name in ((rollout, "generate"), (seq2seq, "generate"), (fitting, "generate"), (classify, "computed")):
        noted(module, name)
    for each in os.environ["TASKS"].split():
        os.environ["TASK"], _, step = each.partition(":")
        if each == "drawn":
            drawn()
            continue
        try:
            cli.main(["train", *sys.argv[1:], *(("--replay", step) if step else ())])
        except SystemExit as end:
            if end.code:
                raise
        distributed.join = lambda launch: None  # they have met
    if jax.process_count() > 1:
        note("remembered", len(distributed._service().key_value_dir_get("jaxformer")))


if __name__ == "__main__":
    main()
