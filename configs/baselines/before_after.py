"""What learning from its own answers made of a model: rewards of held-out prompts, and what it knew before.

    python configs/baselines/before_after.py configs/safer_continuations.py [data]

Wants the finished run of that experiment. Draws eight answers to each of 64 held-out prompts from the model that the
run began with, and from what it became. Prints a table, per group of prompts where records have a "group": the mean
of each reward with its 90% interval, as if all answers were drawn by themselves; how much an answer's tokens surprise
the model from before, in nats a token; how many answers ended. And, where data is named, the perplexity, before and
after, of text that has nothing to do with it: package descriptions and sentences of reviews.
"""

import json
import runpy
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from rich.progress import track

import jaxformer
from jaxformer.align import answers
from jaxformer.align.exchange import prompt_of
from jaxformer.align.online import Online
from jaxformer.align.rewards import Judges
from jaxformer.align.rollout import Prompt, Roller
from jaxformer.align.safety import Rate, rate, table
from jaxformer.experiment import Experiment
from jaxformer.nn.model import Model

COUNT, EACH, AT_ONCE, SHOWN = 64, 8, 8, 4
Drawn = dict[str, list[float]]


def prompts_of(experiment: Experiment, tokenizer: Any) -> list[Prompt]:
    """The first of the held-out prompts that fit."""
    task, found = experiment.task, list[Prompt]()
    assert isinstance(task, Online)
    for line in Path(experiment.data.held_out_files[0]).read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        ids = prompt_of(tokenizer, task.asked(record), encoder=task.encoder, template=task.template)
        if len(ids) <= task.room(experiment.length):
            found.append(Prompt(ids, task.asked(record), record))
    return found[:COUNT]


def drawn(experiment: Experiment, model: Model, params: Any, first: Any, tokenizer: Any, what: str) -> Drawn:
    """Of each answer: what it is worth, the surprise of its tokens, whether it ended; its text and group."""
    task = experiment.task
    assert isinstance(task, Online)

    @jax.jit
    def surprise(rows: Mapping[str, Array]) -> Array:
        out = answers.read(model, {"params": first}, jax.random.key(0), False, rows)
        return -answers.averaged(answers.log_probs(model, {"params": first}, out, rows["answers"]), rows["written"])

    roller = Roller(model, tokenizer, Judges(task.rewards), task.room(experiment.length), task.answer_length)
    prompts, found = prompts_of(experiment, tokenizer), dict[str, list[Any]]()
    for start in track(range(0, len(prompts), AT_ONCE), what):
        some = prompts[start : start + AT_ONCE]
        key = jax.random.fold_in(jax.random.key(0), start)
        out = roller({"params": params}, some, np.ones(len(some)), EACH, task.temperature, key)
        rows = {name: out.rows[name] for name in ("tokens", "mask", "answers", "written")}
        values = out.rewards | {"surprise": np.asarray(surprise(rows)), "ended": out.rows["ended"]}
        groups = [prompt.record.get("group", "all") for prompt in some for _ in range(EACH)]
        for name, each in (values | {"text": out.texts, "group": groups}).items():
            found.setdefault(name, []).extend(each)
    return found


def per_group(found: Drawn) -> dict[str, dict[str, Rate]]:
    """The mean of each measure, in each group and in all."""
    groups = (*dict.fromkeys(group for group in found["group"] if group != "all"), "all")
    names = [name for name in found if name not in ("text", "group")]
    inside = {group: [i for i, each in enumerate(found["group"]) if group in (each, "all")] for group in groups}
    return {
        group: {name: rate([float(found[name][i]) for i in some]) for name in names} for group, some in inside.items()
    }


def main(file: Path, data: Path | None = None) -> None:
    experiment: Experiment = runpy.run_path(str(file))["config"]()
    assert isinstance(experiment.task, Online), f"{file} does not learn from its own answers"
    begun = jaxformer.from_pretrained(str(experiment.start))
    became = jaxformer.from_pretrained(experiment.path / "model")
    found = {
        name: drawn(experiment, model, params, begun[1], tokenizer, name)
        for name, (model, params, tokenizer) in (("before", begun), ("after", became))
    }
    print(table(*map(per_group, found.values())), "\n")
    for name, each in found.items():
        print(name, *(f"    {text!r}" for text in each["text"][:: len(each["text"]) // SHOWN][:SHOWN]), sep="\n")
    if data is None:
        return
    known = runpy.run_path(str(Path(__file__).with_name("instruct.py")))
    with tempfile.TemporaryDirectory() as place:
        some = Path(place) / "some.jsonl"
        for part, count in known["KNOWN"].items():
            some.write_text("".join(known["first"](data / part, count)), encoding="utf-8")
            line = f"perplexity of {Path(part).parent}"
            for name, source in (("before", str(experiment.start)), ("after", str(experiment.path / "model"))):
                values = known["measured"](source, Path(place), "--data.files", str(some), "--length", "256")
                line += f", {name} {values['perplexity']:.2f}"
            print(line)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:])) if len(sys.argv) > 1 else sys.exit(__doc__)
