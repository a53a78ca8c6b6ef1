"""Every experiment in configs/ runs from its records to its published model: two steps, on a few of them.

What begins from another's run does so here too.
"""

import json
import math
import runpy
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from jaxformer import sharding
from jaxformer.align import ModelReward
from jaxformer.align.online import Online
from jaxformer.align.pairs import Pairs
from jaxformer.families import llama
from jaxformer.fitting import fit
from jaxformer.nn.model import Model
from jaxformer.sharding import MeshConfig
from jaxformer.source import from_pretrained, save_pretrained
from jaxformer.tasks import Classify, Instruct, Seq2Seq, Tag
from jaxformer.testing import SENTENCES

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("fresh_caches")]

FILES = {file.stem: file for file in sorted((Path(__file__).parents[2] / "configs").glob("*.py"))}


def record(task, i):
    """A record that the task can read."""
    text = f"{i} {SENTENCES[i % len(SENTENCES)]}" * 3
    if isinstance(task, Online):
        return {task.prompt: f"{i}+1=", **{name: str(i + 1) for name in task.given}}
    if isinstance(task, Pairs):
        return {task.prompt: "", task.chosen: text, task.rejected: f"{text}?", "margin": 1.0}
    if isinstance(task, Tag):
        words = text.split()
        return {task.words: words, task.tags: [task.labels[(i + j) % len(task.labels)] for j in range(len(words))]}
    if isinstance(task, Instruct) and not task.prompt:
        return {task.messages: [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": text}]}
    found = dict.fromkeys(task.columns or ("text",), text)
    return found | {task.label: task.labels[i % len(task.labels)]} if isinstance(task, Classify) else found


def shorter(task):
    """The task with short answers, and few of them."""
    if isinstance(task, Online):
        return replace(task, answer_length=6, group=min(task.group, 2))
    return replace(task, target_length=16) if isinstance(task, Seq2Seq) else task


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
        task=shorter(e.task),
        tokenizer=replace(e.tokenizer, vocab_size=min(500, e.tokenizer.vocab_size)),
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


def tiny(source, folder):
    """A folder with a small random model that has the tokenizer of a published one."""
    if not folder.exists():
        _, _, tokenizer = from_pretrained(source)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
        model = Model(llama.config({"vocab_size": tokenizer.vocab_size} | sizes), compute="float32")
        save_pretrained(folder, model, sharding.init(model, jax.random.key(0)), tokenizer)
    return str(folder)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A function from a config's name to its finished run; each is run once. One of those that begin from a published
    decoder does so here, the others from a small one.
    """
    folder, runs = tmp_path_factory.mktemp("recipes"), {}

    def run(name):
        if name not in runs:
            experiment = runpy.run_path(str(FILES[name]))["config"]()
            first = Path(experiment.start or "").name
            if first in FILES:
                experiment = replace(experiment, start=str(run(first).folder))
            elif str(experiment.start).endswith(".gguf") and name != "smollm2_instruct_lora":
                experiment = replace(experiment, start=tiny(experiment.start, folder / "tiny"))
            if isinstance(experiment.task, Online):
                judges = tuple(map(judge, experiment.task.rewards))
                experiment = replace(experiment, task=replace(experiment.task, rewards=judges))
            runs[name] = fit(small(experiment, folder), progress=False)
        return runs[name]

    def judge(reward):
        own = isinstance(reward, ModelReward)
        return replace(reward, source=str(run(Path(reward.source).parent.name).folder / "model")) if own else reward

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
