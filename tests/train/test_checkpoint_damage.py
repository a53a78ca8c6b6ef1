"""Checkpoints that are no longer what was saved: they are found, named, and never read."""

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.experiment import Experiment
from jaxformer.fitting import fit
from jaxformer.optimizer import OptimizerConfig
from jaxformer.source import from_pretrained
from jaxformer.testing import SENTENCES, tiny_models
from jaxformer.text.tokenizer import TokenizerConfig
from jaxformer.train import checksums
from jaxformer.train.checkpoint import Checkpoints, SaveError
from jaxformer.train.checksums import DamagedError
from jaxformer.train.metrics import read_metrics
from jaxformer.train.state import TrainState

CASES = 40
JSON = "orbax.checkpoint._src.handlers.json_checkpoint_handler.JsonCheckpointHandler"


def state_of(step):
    draw = np.random.default_rng(step)
    params = {"a": {"w": jnp.asarray(draw.normal(size=(60, 40)), jnp.float32)}, "b": jnp.asarray(draw.normal(size=3))}
    return TrainState(step=jnp.int32(step), params=params, opt_state={"m": jnp.asarray(draw.normal(size=(9, 5)))})


def abstract(state):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def restored(folder, **options):
    """(state, steps that are left) of the newest good checkpoint."""
    with Checkpoints(folder, **options) as checkpoints:
        return checkpoints.restore(abstract(state_of(0)))[0], checkpoints.steps()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the checkpoints 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder, best=("loss", "min")) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(state_of(step), {"n": step}, {"m": step}, {"loss": float(step)})
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def files_of(step):
    return sorted(path for path in step.rglob("*") if path.is_file() and path.name not in checksums.BOOKS)


def damage(path, draw):
    """Change a file in one of the ways in which disks, kills and people do."""
    content = bytearray(path.read_bytes())
    way = draw.choice(["flip", "truncate", "empty", "append", "delete"] if content else ["append", "delete"])
    if way == "flip":
        content[draw.integers(len(content))] ^= 1 << draw.integers(8)
    elif way == "truncate":
        del content[draw.integers(1, len(content)) :]
    elif way == "empty":
        content.clear()
    elif way == "append":
        content += b"0"
    path.unlink() if way == "delete" else path.write_bytes(content)


@pytest.mark.parametrize("seed", range(CASES))
def test_whatever_happens_to_any_file_the_step_before_is_restored_bit_for_bit(saved, tmp_path, seed, caplog):
    draw = np.random.default_rng(seed)
    folder = shutil.copytree(saved, tmp_path / "checkpoints")
    path = draw.choice(files_of(folder / "3"))
    damage(path, draw)
    name = path.relative_to(folder / "3").as_posix()
    (line,) = checksums.damages(folder / "3")
    assert line.startswith(f"{name}: ")
    state, steps = restored(folder)
    assert_same(state, state_of(2))
    assert steps == [1, 2]
    assert (folder / "damaged" / "3").is_dir()
    assert f"the checkpoint {folder / '3'} is damaged:\n  - {line}" in caplog.text
    assert "the one of step 2 is taken instead" in caplog.text


def test_a_good_checkpoint_is_good(folder):
    for step in (1, 2, 3):
        assert checksums.damages(folder / str(step)) == checksums.unexpected(folder / str(step)) == []


@pytest.mark.parametrize("seed", range(40))
def test_what_orbax_writes_until_the_commit_is_not_held_to_anything_and_nothing_hangs_on_it(folder, seed, caplog):
    """It writes that in a thread of its own, now before and now behind the checksums."""
    draw = np.random.default_rng(seed)
    books = [folder / "3" / name for name in checksums.BOOKS]
    assert not {*checksums.read(folder / "3")["files"]} & {*checksums.BOOKS}
    for path in books:
        damage(path, draw)
    state, steps = restored(folder)
    assert_same(state, state_of(3))
    assert steps == [1, 2, 3]
    assert caplog.text == ""


@pytest.mark.parametrize("items", [{}, {"params": 3}, {"params": JSON, "opt": JSON, "data": JSON}, None, 7], ids=str)
def test_orbax_believes_what_it_is_asked_for_and_not_what_it_noted(folder, items):
    path = folder / "3" / checksums.METADATA
    path.write_text(json.dumps(json.loads(path.read_text()) | {"item_handlers": items}))
    assert_same(restored(folder)[0], state_of(3))


def test_the_checksums_are_those_of_the_usual_tool(folder):
    for name, want in checksums.read(folder / "2")["files"].items():
        found = subprocess.run(["sha256sum", folder / "2" / name], capture_output=True, text=True, check=True)
        assert found.stdout.split()[0] == want["sha256"]
        assert (folder / "2" / name).stat().st_size == want["bytes"]


def test_the_same_step_can_be_saved_again_and_set_aside_again(folder):
    for number, name in enumerate(("3", "3-2", "3-3"), 1):
        (folder / "3" / "opt" / "_METADATA").write_text("{}")
        with Checkpoints(folder) as checkpoints:
            assert int(checkpoints.restore(abstract(state_of(0)))[0].step) == 2
            checkpoints.save(state_of(3), {"n": 3}, {"m": 3})
            assert_same(checkpoints.restore(abstract(state_of(0)))[0], state_of(3))
        assert (folder / "damaged" / name).is_dir()
        assert len(list((folder / "damaged").iterdir())) == number


def test_several_damaged_steps_are_passed_over(folder):
    (folder / "3" / "params" / "_METADATA").unlink()
    (folder / "2" / "meta" / "metadata").write_text('{"m": 7}')
    state, steps = restored(folder)
    assert_same(state, state_of(1))
    assert steps == [1]
    assert sorted(path.name for path in (folder / "damaged").iterdir()) == ["2", "3"]


def test_a_reader_passes_over_and_moves_nothing(folder, caplog):
    (folder / "3" / "params" / "_METADATA").write_text("{}")
    before = sorted(folder.rglob("*"))
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert_same(checkpoints.restore_params(), state_of(2).params)
        assert checkpoints.read_meta() == {"m": 2}
        assert checkpoints.steps() == [1, 2, 3]
    assert sorted(folder.rglob("*")) == before
    assert "params/_METADATA: has 2 bytes, " in caplog.text
    assert "moved" not in caplog.text


def test_parameters_alone_do_not_need_the_optimizer_to_be_whole(folder, caplog):
    shutil.rmtree(folder / "3" / "opt")
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert_same(checkpoints.restore_params(), state_of(3).params)
        assert caplog.text == ""
        assert int(checkpoints.restore(abstract(state_of(0)))[0].step) == 2


def test_a_damaged_step_that_is_asked_for_is_an_error_and_stays(folder):
    (folder / "3" / "params" / "_METADATA").write_text("{}")
    with Checkpoints(folder) as checkpoints:
        for call in (
            lambda: checkpoints.restore(abstract(state_of(0)), 3),
            lambda: checkpoints.restore_params(step=3),
            lambda: checkpoints.read_meta(3),
        ):
            with pytest.raises(DamagedError, match=r"/3 is damaged:\n  - params/_METADATA: has 2 bytes, \d"):
                call()
        assert checkpoints.steps() == [1, 2, 3]


def test_where_all_are_damaged_each_is_told_and_none_is_moved(folder):
    for step, item in ((1, "params"), (2, "opt"), (3, "params")):
        (folder / str(step) / item / "manifest.ocdbt").unlink()
    for _ in range(2):  # a second start must not begin anew, as if nothing were there
        with pytest.raises(DamagedError) as caught, Checkpoints(folder) as checkpoints:
            checkpoints.restore(abstract(state_of(0)))
        lines = str(caught.value).splitlines()
        assert [line for line in lines if line.startswith("the checkpoint")] == [
            f"the checkpoint {folder / str(step)} is damaged:" for step in (3, 2, 1)
        ]
        assert [line for line in lines if line.startswith("  - ")] == [
            f"  - {item}/manifest.ocdbt: is missing" for item in ("params", "opt", "params")
        ]
    assert not (folder / "damaged").exists()


def test_damaged_metrics_keep_nothing_from_being_opened_or_kept(folder):
    (folder / "1" / "metrics" / "metrics").write_text("{")
    with Checkpoints(folder, keep=1, best=("loss", "min")) as checkpoints:
        assert checkpoints.best() == 2
        checkpoints.save(state_of(4), {}, {}, {"loss": 9.0})
        assert checkpoints.steps() == [2, 4]


def test_an_error_names_the_first_files_and_counts_the_rest(folder):
    shutil.rmtree(folder / "3" / "params")
    listed = checksums.read(folder / "3")["files"]
    wrong = checksums.damages(folder / "3")
    assert wrong == [f"{name}: is missing" for name in listed if name.startswith("params/")]
    text = str(DamagedError({folder / "3": wrong * 2}))
    assert text.count("is missing") == checksums.SHOWN
    assert text.endswith(f"and {2 * len(wrong) - checksums.SHOWN} more files")


def test_names_in_the_list_lead_nowhere_else(folder, tmp_path):
    (tmp_path / "secret").write_text("x")
    value = checksums.read(folder / "3")
    value["files"]["../../secret"] = {"bytes": 1, "sha256": ""}
    (folder / "3" / checksums.FILE).write_text(checksums._text(value))
    assert checksums.damages(folder / "3") == ["../../secret: is missing"]
    (folder / "2" / "meta" / "metadata").unlink()
    (folder / "2" / "meta" / "metadata").symlink_to(tmp_path / "secret")
    assert checksums.damages(folder / "2") == ["meta/metadata: is no file"]


EMPTY = b'{"version": 1, "files": {}, "saved": {}}'
CHANGED = {}, {"version": 2}, {"files": {"a": 1}}, {"files": []}, {"saved": {"time": 1}}, {"more": 1}


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{}", b"[" * 100_000, EMPTY, *CHANGED])
def test_a_list_of_checksums_that_was_not_written_here_is_no_list(folder, content):
    if isinstance(content, dict):
        content = checksums._text(checksums.read(folder / "3") | content).encode() + b"\n" * (not content)
    (folder / "3" / checksums.FILE).write_bytes(content)
    assert checksums.damages(folder / "3") == [f"{checksums.FILE}: is not as it was written"]


# Checkpoints of versions that wrote no checksums.


@pytest.fixture
def older(folder):
    for step in (1, 2, 3):
        (folder / str(step) / checksums.FILE).unlink()
    return folder


def test_a_step_without_checksums_is_used(older, caplog):
    assert checksums.unexpected(older / "3") == []
    assert_same(restored(older)[0], state_of(3))
    assert caplog.text == ""


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "data/metadata", "params/_METADATA", "opt/manifest.ocdbt"])
def test_a_step_without_checksums_that_cannot_be_read_is_passed_over(older, name, caplog):
    path = older / "3" / name
    path.write_bytes(path.read_bytes()[:-9])
    assert_same(restored(older)[0], state_of(2))
    assert f"{name.split('/')[0]}: cannot be read: " in caplog.text


def test_a_step_without_checksums_whose_arrays_are_cut_off_is_passed_over(older):
    for path in (older / "3" / "params").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-9])
    assert_same(restored(older)[0], state_of(2))


# A save that cannot enter them.


def test_without_its_checksums_no_step_is_complete(tmp_path, monkeypatch):
    def full(folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_of(1), {}, {})
    monkeypatch.setattr(checksums, "write", full)
    reason = r"step 2 cannot be saved in .* \([\d,]+ MiB are free on that disk\): .*No space left on device"

    def run(after):
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(state_of(2), {}, {})
            after("another file of the run, which may meet it first")

    for after in (print, full):
        with pytest.raises(SaveError, match=reason):
            run(after)
    monkeypatch.undo()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1]
        checkpoints.save(state_of(2), {}, {})
    assert_same(restored(tmp_path)[0], state_of(2))


# A run.

EXPERIMENT = Experiment(
    name="tiny",
    model=replace(tiny_models()["rotary"], vocab=320),
    steps=4,
    rows=8,
    length=16,
    tokenizer=TokenizerConfig("sentencepiece", 320),
    optimizer=OptimizerConfig(warmup_steps=1, ema=0.5),
    evaluate_every=2,
    save_every=1,
)
TEXTS = [f"{number}. {sentence}" * 3 for number in range(3) for sentence in SENTENCES]


def log_of(run):
    return [(line["step"], line["values"]) for line in read_metrics(run)]


def test_a_run_goes_on_from_the_last_good_checkpoint_and_ends_the_same(tmp_path, capsys):
    whole = fit(replace(EXPERIMENT, folder=str(tmp_path / "whole")), TEXTS, progress=False)
    shutil.copytree(tmp_path / "whole", tmp_path / "damaged")
    experiment = replace(EXPERIMENT, folder=str(tmp_path / "damaged"))
    for name in ("result.json", "model"):
        path = experiment.path / name
        path.unlink() if path.is_file() else shutil.rmtree(path)
    newest = experiment.path / "checkpoints" / "4"
    for path in (newest / "opt").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    params = from_pretrained(experiment.path)[1]
    jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(whole.state.params))
    for path in (newest / "params").rglob("d/*"):
        path.write_bytes(b"")
    from_pretrained(experiment.path)
    assert newest.is_dir()
    run = fit(experiment, TEXTS)
    assert "going on from step 3" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, run.state, whole.state)
    assert log_of(experiment.path) == log_of(whole.folder)
    assert (experiment.path / "checkpoints" / "damaged" / "4").is_dir()
    assert checksums.damages(newest) == []


# Several processes.

PROCESS = """
import sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
folder, port, number = sys.argv[1:]
address = f"127.0.0.1:{port}"
jax.distributed.initialize(address, 2, int(number), coordinator_bind_address=address if number == "0" else None)
from jaxformer.train.checkpoint import Checkpoints
from jaxformer.train.checksums import DamagedError
from jaxformer.train.state import TrainState
mesh = Mesh(np.array(jax.devices()), "x")
split, whole = NamedSharding(mesh, P("x")), NamedSharding(mesh, P())
put = lambda array, home: jax.make_array_from_callback(array.shape, home, lambda index: array[index])
def state_of(step):
    params = {"w": put(np.random.default_rng(step).normal(size=(8, 4)).astype(np.float32), split)}
    return TrainState(step=put(np.array(step, np.int32), whole), params=params, opt_state={})
target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state_of(0))
def values(state):
    return [np.asarray(shard.data).tolist() for shard in state.params["w"].addressable_shards]
with Checkpoints(folder) as checkpoints:
    for step in (1, 2):
        checkpoints.save(state_of(step), {}, {})
    checkpoints.wait()
    if number == "0":
        next(iter(checkpoints.folder.glob("2/params/_METADATA"))).write_text("{}")
    jax.experimental.multihost_utils.sync_global_devices("damaged")
    restored = checkpoints.restore(target)[0]
    assert values(restored) == values(state_of(1))
    assert checkpoints.steps() == [1]
    checkpoints.save(state_of(2), {}, {})
    checkpoints.wait()
    if number == "0":
        for step in (1, 2):
            (checkpoints.folder / str(step) / "params" / "_METADATA").write_text("{}")
    jax.experimental.multihost_utils.sync_global_devices("all damaged")
with Checkpoints(folder) as checkpoints:
    try:
        checkpoints.restore(target)
    except (DamagedError, RuntimeError) as error:
        print(type(error).__name__, error)
"""


@pytest.mark.slow
def test_two_processes_write_one_list_and_agree_on_what_is_good(tmp_path, free_port):
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-c", textwrap.dedent(PROCESS), str(tmp_path), str(free_port)]
    processes = [
        subprocess.Popen(
            [*command, str(number)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for number in range(2)
    ]
    (first, errors), (second, more) = (process.communicate(timeout=300) for process in processes)
    assert [process.returncode for process in processes] == [0, 0], errors + more
    assert errors.count("is damaged") == 1
    assert "is damaged" not in more
    assert first.count("params/_METADATA: has 2 bytes") == 2
    said = first.partition("DamagedError ")[2]  # what comes before is gloo's
    assert said.startswith("the checkpoint")
    assert second.endswith(f"RuntimeError process 0 failed: {said}")
    saved = checksums.read(tmp_path / "2")["saved"]
    assert (saved["processes"], saved["devices"], saved["platform"]) == (2, 4, "cpu")


@pytest.fixture
def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
