"""Every experiment in configs/ runs from its records to its published model: two steps, on a few of them.

What begins from another's run does so here too.
"""

import json
import math
import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from jaxformer.fitting import fit
from jaxformer.sharding import MeshConfig
from jaxformer.source import from_pretrained
from jaxformer.tasks import Classify, Instruct, Seq2Seq, Tag
from jaxformer.testing import SENTENCES

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("fresh_caches")]

FILES = {file.stem: file for file in sorted((Path(__file__).parents[2] / "configs").glob("*.py"))}


def record(task, i):
    """A record that the task can read."""
    text = f"{i} {SENTENCES[i % len(SENTENCES)]}" * 3
    if isinstance(task, Tag):
        words = text.split()
        return {task.words: words, task.tags: [task.labels[(i + j) % len(task.labels)] for j in range(len(words))]}
    if isinstance(task, Instruct) and not task.prompt:
        return {task.messages: [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": text}]}
    found = dict.fromkeys(task.columns or ("text",), text)
    return found | {task.label: task.labels[i % len(task.labels)]} if isinstance(task, Classify) else found


def small(e, folder):
    """The experiment with its own model and task, and little of all else."""
    file = folder / f"{e.name}.jsonl"
    file.write_text("".join(f"{json.dumps(record(e.task, i))}\n" for i in range(40)))
    here = {"files": (str(file),), "held_out_files": ()}
    mixture = tuple(replace(part, **here) for part in e.data.mixture)
    return replace(
        e,
        folder=str(folder / "runs"),
        data=replace(e.data, **here, held_out=4, mixture=mixture),
        task=replace(e.task, target_length=16) if isinstance(e.task, Seq2Seq) else e.task,
        tokenizer=replace(e.tokenizer, vocab_size=500),
        optimizer=replace(e.optimizer, warmup_steps=1),
        mesh=MeshConfig() if e.start is None else MeshConfig(data=1, fsdp=8),
        steps=2,
        rows=8,
        length=48,
        accumulate=1,
        evaluate_every=2,
        evaluation_stride=e.evaluation_stride and 24,
        save_every=1,
        keep=2,
        average=min(e.average, 2),
        prompts=e.prompts[:1],
        prompt_tokens=2,
        predictions=4,
        compressors=False,
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A function from a config's name to its finished run; each is run once."""
    folder, runs = tmp_path_factory.mktemp("recipes"), {}

    def run(name):
        if name not in runs:
            experiment = runpy.run_path(str(FILES[name]))["config"]()
            first = Path(experiment.start or "").name
            if first in FILES:
                experiment = replace(experiment, start=str(run(first).folder))
            runs[name] = fit(small(experiment, folder), progress=False)
        return runs[name]

    return run


@pytest.mark.parametrize("name", FILES)
def test_it_runs_and_is_published(ran, name):
    try:
        run = ran(name)
    except ModuleNotFoundError as error:
        pytest.skip(f"not installed: {error}")
    assert run.finished
    assert int(run.state.step) == 2
    assert math.isfinite(run.evaluation["loss"])
    model, _, tokenizer = from_pretrained(run.folder / "model")
    assert model.config == run.model.config
    assert tokenizer.fingerprint() == run.tokenizer.fingerprint()
