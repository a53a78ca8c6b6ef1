"""A plan is that of the step which training takes."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxformer import cli, fitting, sharding, starting, stepping, tree
from jaxformer.experiment import Experiment
from jaxformer.families import llama
from jaxformer.flops import step_flops
from jaxformer.lora import LoraConfig
from jaxformer.optimizer import OptimizerConfig
from jaxformer.plan import rows, target
from jaxformer.plan.changes import candidates, changes
from jaxformer.plan.chips import CHIPS
from jaxformer.plan.compiling import sketched
from jaxformer.plan.report import make_plan
from jaxformer.plan.rows import Sizes
from jaxformer.sharding import MeshConfig, make_mesh
from jaxformer.tasks import CausalLM, Classify, Denoise, MaskedLM, PrefixLM, SpanCorruption
from jaxformer.testing import SENTENCES, tiny_models
from jaxformer.text.corpus import DataConfig
from jaxformer.text.tokenizer import TokenizerConfig

MODELS = {name: dataclasses.replace(config, vocab=640) for name, config in tiny_models().items()}


def tiny(model="rotary", **fields):
    given = {"name": "tiny", "steps": 4, "rows": 16, "length": 32, "optimizer": OptimizerConfig(warmup_steps=1)}
    given |= {"tokenizer": TokenizerConfig("sentencepiece", 320), "mesh": MeshConfig(data=1, fsdp=8)}
    return Experiment(**(given | {"model": MODELS.get(model)} | fields))


@pytest.mark.parametrize(
    ("model", "task", "sizes"),
    [
        ("rotary", CausalLM(), Sizes(16, 32, None, None)),
        ("rotary", PrefixLM(), Sizes(16, 32, None, None)),
        ("encoder", MaskedLM(), Sizes(16, 32, None, 5)),
        ("relative", SpanCorruption(), Sizes(16, 32, 8, None)),
        ("relative", Denoise(), Sizes(16, 32, 32, None)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_batch_is_known_by_its_task_alone(model, task, sizes):
    e = tiny(model, task=task)
    row = rows.row(e, e.model, None)
    batch = rows.batch(row, e.rows, NamedSharding(make_mesh(e.mesh), P(sharding.BATCH)))
    assert rows.sizes(batch, e.model) == sizes
    assert {leaf.shape[0] for leaf in batch.values()} == {16}


def test_records_are_read_where_the_task_wants_them(tmp_path):
    file = tmp_path / "labelled.jsonl"
    file.write_text("".join(json.dumps({"text": text, "label": "a"}) + "\n" for text in SENTENCES))
    e = tiny("shared", task=Classify(labels=("a", "b", "c")), data=DataConfig(files=(str(file),)))
    e = dataclasses.replace(e, tokenizer=TokenizerConfig("wordpiece", 320))
    assert rows.row(e, e.model, None)["labels"].shape == ()


def test_the_planned_step_is_the_one_that_training_takes(tmp_path, monkeypatch):
    """The program of a run's first step, lowered from its arrays, and that of shapes alone: equal to the letter."""
    e, programs, train_step = tiny(folder=str(tmp_path), remat="full", steps=2), [], stepping.train_step

    def watched(*given):
        step = train_step(*given)

        def taken(*arrays):
            programs.append(step.lower(*arrays).as_text())
            return step(*arrays)

        return taken

    monkeypatch.setattr(stepping, "train_step", watched)
    fitting.fit(e, [*SENTENCES] * 20, progress=False)
    step = sketched(e, target.find("cpu:8"))
    homes = jax.tree.map(lambda leaf: leaf.sharding, step.state)
    with jax.set_mesh(step.mesh):
        planned = train_step(e, step.start.model, starting.rule(e, False), homes, step.mesh)
        assert planned.lower(step.state, step.start.frozen, step.batch).as_text() == programs[0]


def test_nothing_is_made_of_seventy_billion_parameters():
    e = dataclasses.replace(tiny(), model=llama.SIZES["llama-3-70b"], length=128)
    before = {id(x) for x in jax.live_arrays()}
    step = sketched(e, target.find("cpu:8"))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(step.state.params)) == 70_553_706_496
    made = [x for x in jax.live_arrays() if id(x) not in before]
    assert sum(x.nbytes for x in made) < 1e6


def test_memory_is_told_by_what_holds_it():
    e = tiny(mesh=MeshConfig(data=1, fsdp=4, tensor=2))
    plan = make_plan(e, target.find("cpu:8"))
    step = sketched(e, target.find("cpu:8"))
    for name, held in (("parameters", step.state.params), ("batch", step.batch)):
        leaves = jax.tree.leaves(held)
        sizes = [math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves]
        assert getattr(plan.memory, name) == sum(sizes)
    two_moments = sum(math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(step.state.params)) * 8
    assert two_moments <= plan.memory.optimizer < two_moments + 100
    held = plan.memory.parameters + plan.memory.optimizer + plan.memory.batch
    assert plan.memory.peak > held + 1000
    assert plan.memory.temporaries == plan.memory.peak - held
    assert plan.flops == step_flops(e.model, 16, 32)
    assert plan.tokens == 16 * 32
    assert plan.fits is True


def test_sharded_parameters_are_gathered_and_their_gradients_added_up():
    alone = make_plan(tiny(mesh=MeshConfig(), rows=2), target.find("cpu:1"))
    assert alone.collectives == ()
    split = {each.kind: each for each in make_plan(tiny(), target.find("cpu:8")).collectives}
    assert split["all-gather"].bytes > 0
    assert split["all-reduce"].bytes > 0


def test_an_adapter_leaves_the_model_in_place():
    e = tiny(adapter=LoraConfig(2))
    plan = make_plan(e, target.find("cpu:8"))
    params = tree.flatten(sharding.abstract_params(sketched(e, target.find("cpu:8")).start.model))
    assert plan.parameters == sum(math.prod(leaf.shape) for leaf in params.values())
    assert plan.memory.frozen > plan.memory.parameters


def test_what_the_roofline_says_follows_from_its_figures():
    chip, found = CHIPS["v5e"], target.find("cpu:8")
    plan = make_plan(tiny(), dataclasses.replace(found, chip=chip))
    line, moved = plan.roofline, sum(each.bytes for each in plan.collectives)
    assert line.compute == pytest.approx(plan.flops.hardware / (8 * 197e12))
    assert line.links == pytest.approx(moved / 200e9)
    assert line.hidden == max(line.compute, line.memory, line.links)
    assert line.utilization[0] == pytest.approx(plan.flops.model / (8 * 197e12) / line.hidden)
    assert line.utilization[1] < line.utilization[0]


def test_changes_that_fit_are_found_and_were_compiled():
    """Room is what the experiment needs with half of its temporaries: recomputing or splitting the batch gives it."""
    e, found = tiny("learned", rows=64, length=64), target.find("cpu:8")
    plan = make_plan(e, found)
    memory = plan.memory
    room = memory.peak + memory.program - 0.5 * memory.temporaries
    narrow = dataclasses.replace(found, memory=room)
    said = []
    enough = changes(e, narrow, make_plan(e, narrow), said.append)
    assert 1 <= len(enough) <= 3
    assert all(each.plan.fits and each.plan.memory.peak <= room for each in enough)
    assert len(said) >= len(enough)
    kinds = [tuple(option.split()[0] for option in each.options) for each in enough]
    assert kinds[0] in (("--remat",), ("--accumulate",))
    assert len(set(kinds)) == len(kinds)


def test_a_state_without_room_is_split_over_more_devices_first():
    e, found = tiny(mesh=MeshConfig(data=8), rows=8), target.find("cpu:8")
    first = make_plan(e, found)
    room = 0.9 * (first.memory.parameters + first.memory.optimizer)
    options = [option for option, *_ in candidates(e, dataclasses.replace(first, room=room))]
    assert options
    assert {name for name, _ in options} == {"--mesh.data 1 --mesh.fsdp 8"}
    assert {name for option, *_ in candidates(e, first) for name, _ in [option]} > {name for name, _ in options}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"rows": 12}, "rows 12 in 1 microbatches cannot be shared evenly by the 8 devices"),
        ({"mesh": MeshConfig(data=3, fsdp=1)}, "doesn't fit 8 devices"),
        ({"model": "encoder"}, "model.encoder is set"),
        ({"start": "nowhere", "model": None}, "nowhere: no config.json"),
    ],
    ids=["rows", "mesh", "task", "start"],
)
def test_what_could_not_run_is_not_planned(fields, reason):
    with pytest.raises((ValueError, FileNotFoundError), match=reason):
        make_plan(tiny(**fields), target.find("cpu:8"))


def test_a_published_model_is_planned_without_its_tensors(tmp_path):
    run = fitting.fit(tiny(folder=str(tmp_path), steps=2), [*SENTENCES] * 20, progress=False)
    e = tiny(model=None, start=str(run.folder), folder=str(tmp_path), name="second")
    plan = make_plan(e, target.find("cpu:8"))
    assert plan.parameters == sum(np.size(leaf) for leaf in jax.tree.leaves(run.params))


CONFIG = """
from jaxformer.config import *
from jaxformer.experiment import Experiment
from jaxformer.sharding import MeshConfig
from jaxformer.testing import tiny_models
from jaxformer.text.tokenizer import TokenizerConfig
import dataclasses
def config():
    model = dataclasses.replace(tiny_models()["rotary"], vocab=640)
    return Experiment("tiny", 1000, model, tokenizer=TokenizerConfig(vocab_size=320), mesh=MeshConfig(fsdp=2))
"""


def test_the_command_prints_tables_and_json(tmp_path, capsys):
    file = tmp_path / "tiny.py"
    file.write_text(CONFIG)
    line = ["plan", str(file), "--topology", "cpu:8", "--rows", "8", "--length", "32"]
    with pytest.raises(SystemExit, match="0"):
        cli.main([*line, "--json"])
    plan = json.loads(capsys.readouterr().out)
    assert (plan["mesh"]["fsdp"], plan["mesh"]["data"], plan["fits"], plan["changes"]) == (2, 4, True, [])
    with pytest.raises(SystemExit, match="0"):
        cli.main(line)
    shown = capsys.readouterr().out
    assert "mesh data 4 x fsdp 2" in shown
    assert all(word in shown for word in ("parameters", "optimizer", "it fits", "all-gather", "recomputed"))


def test_the_command_says_what_it_lacks(tmp_path, capsys):
    file = tmp_path / "tiny.py"
    file.write_text(CONFIG)
    with pytest.raises(SystemExit, match="1"):
        cli.main(["plan", str(file), "--topology", "v9:2x2"])
    assert "'v9:2x2': no such topology; there are v5e:1x1" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="1"):
        cli.main(["plan"])
    assert "which experiment?" in capsys.readouterr().err
