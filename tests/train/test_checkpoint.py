import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxformer.opt_state import LossScale
from jaxformer.optimizer import OptimizerConfig, ema_params, make_optimizer
from jaxformer.train import checksums
from jaxformer.train.checkpoint import Checkpoints, SaveError
from jaxformer.train.state import TrainState

OPTIMIZER = make_optimizer(OptimizerConfig(ema=0.9, warmup_steps=1), 10, dynamic_scale=True)


def state_of(step, seed=0, width=4, optimizer=OPTIMIZER):
    """A state with every leaf drawn at random, of several dtypes, and with optax's empty nodes."""
    draw = np.random.default_rng([seed, step])
    params = {
        "embed": {"embedding": jnp.asarray(draw.normal(size=(5, width)), jnp.bfloat16)},
        "heads": {"lm": {"kernel": jnp.asarray(draw.normal(size=(width, 5)), jnp.float32)}},
    }
    opt_state = jax.tree.map(lambda x: jnp.asarray(draw.normal(size=x.shape) * 100, x.dtype), optimizer.init(params))
    return TrainState(step=jnp.int32(step), params=params, opt_state=opt_state)


def abstract(state, sharding=None):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def fill(folder, losses, **options):
    """Save a state for each {step: loss}, and return what is left."""
    with Checkpoints(folder, **options) as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(state_of(step), {}, {}, None if loss is None else {"loss": loss})
        return checkpoints.steps(), checkpoints.best()


def test_what_was_saved_is_restored_bit_for_bit_with_its_structure(tmp_path):
    state = state_of(7)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, {"n": 7, "fingerprint": "f"}, {"model": {"width": 4}, "x": [1, None, 0.1]})
    with Checkpoints(tmp_path) as checkpoints:
        restored, data, meta = checkpoints.restore(abstract(state))
    assert_same(restored, state)
    assert isinstance(restored.opt_state[-1], LossScale)
    assert_same(ema_params(restored.opt_state), ema_params(state.opt_state))
    assert data == {"n": 7, "fingerprint": "f"}
    assert meta == {"model": {"width": 4}, "x": [1, None, 0.1]}


@pytest.mark.parametrize("optimizer", [optax.sgd(0.1), optax.sgd(0.1, momentum=0.9), optax.adamw(0.1)])
def test_any_optimizer_of_optax_comes_back_the_same(tmp_path, optimizer):
    state = state_of(1, optimizer=optimizer)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, {}, {})
        assert_same(checkpoints.restore(abstract(state))[0], state)


def test_a_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    def big(step):  # large enough to be still on its way to the disk
        return TrainState(step=step, params={"w": jnp.arange(4e6, dtype=jnp.float32) + step}, opt_state={})

    overwrite = jax.jit(lambda state: jax.tree.map(lambda x: x * 0 - 1, state), donate_argnums=0)
    with Checkpoints(tmp_path, keep=4) as checkpoints:
        for step in range(4):
            state = big(jnp.int32(step))
            checkpoints.save(state, {}, {})
            for _ in range(3):
                state = jax.block_until_ready(overwrite(state))
        for step in range(4):
            assert_same(checkpoints.restore(abstract(big(jnp.int32(0))), step)[0], big(jnp.int32(step)))


@pytest.mark.parametrize(
    ("options", "losses", "kept", "best"),
    [
        ({"keep": 2}, {1: None, 2: None, 3: None, 4: None}, [3, 4], None),
        ({"keep": 1, "keep_every": 2}, {1: None, 2: None, 3: None, 4: None, 5: None}, [2, 4, 5], None),
        ({"keep": 1, "best": ("loss", "min")}, {1: 3.0, 2: 1.0, 3: 2.0, 4: None}, [2, 4], 2),
        ({"keep": 1, "best": ("loss", "max")}, {1: 3.0, 2: 1.0, 3: 3.0, 4: 2.0}, [1, 4], 1),
        ({"keep": 1, "best": ("loss", "min")}, {1: 3.0, 2: float("nan"), 3: float("-inf")}, [1, 3], 1),
        ({"keep": 1, "best": ("loss", "min")}, {1: None, 2: None}, [2], None),
    ],
)
def test_the_newest_the_spaced_and_the_best_are_kept(tmp_path, options, losses, kept, best):
    assert fill(tmp_path, losses, **options) == (kept, best)
    with Checkpoints(tmp_path, **options) as again:  # and known to the next process
        assert (again.steps(), again.best(), again.latest()) == (kept, best, kept[-1])


def test_the_best_of_an_earlier_process_is_still_kept(tmp_path):
    fill(tmp_path, {1: 1.0, 2: 2.0}, keep=1, best=("loss", "min"))
    assert fill(tmp_path, {3: 3.0, 4: 4.0}, keep=1, best=("loss", "min")) == ([1, 4], 1)


def test_checkpoints_that_no_longer_count_leave_no_files(tmp_path):
    fill(tmp_path, {1: None, 2: None, 3: None}, keep=1)
    assert {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*") if path.is_file()} == {"3"}


def test_a_mismatch_is_one_error_that_names_each_path(tmp_path, capfd):
    state = state_of(3)
    other = state_of(3, width=6)
    other.params["heads"]["lm"] = {"bias": jnp.zeros(5)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, {}, {})
        with pytest.raises(ValueError) as caught:
            checkpoints.restore(abstract(other))
    lines = str(caught.value).splitlines()
    assert "step 3" in lines[0]
    assert str(tmp_path) in lines[0]
    assert "  - params/embed/embedding: expected bfloat16[5, 6], found bfloat16[5, 4]" in lines
    assert "  - params/heads/lm/bias: expected float32[5], found nothing" in lines
    assert "  - params/heads/lm/kernel: expected nothing, found float32[4, 5]" in lines
    assert any(line.startswith("  - opt/") for line in lines)
    assert capfd.readouterr() == ("", "")


def test_resuming_never_casts_and_loading_parameters_does(tmp_path):
    state = state_of(1)
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), state.params)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, {}, {})
        with pytest.raises(ValueError, match=r"params/heads/lm/kernel: expected bfloat16\[4, 5\], found float32"):
            checkpoints.restore(abstract(state).replace(params=half))
        assert_same(checkpoints.restore_params(half), jax.tree.map(lambda x: x.astype(jnp.bfloat16), state.params))


def test_a_run_is_read_without_knowing_anything_and_left_as_it_was(tmp_path):
    state = state_of(2)
    fill(tmp_path, {1: None})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, {}, {"config": "of the model"})
    (tmp_path / "5.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(tmp_path, read_only=True) as reader:
        assert reader.steps() == [1, 2]
        assert reader.read_meta() == {"config": "of the model"}
        assert reader.read_meta(1) == {}
        assert_same(reader.restore_params(), state.params)
        with pytest.raises(SaveError, match="read_only"):
            reader.save(state_of(3), {}, {})
    assert {entry.name for entry in tmp_path.iterdir()} == {"1", "2", "5.orbax-checkpoint-tmp"}


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Checkpoints(tmp_path / "nowhere", read_only=True)
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.steps(), checkpoints.latest(), checkpoints.best()) == ([], None, None)
        with pytest.raises(FileNotFoundError, match="no checkpoint in"):
            checkpoints.restore(abstract(state_of(1)))
        checkpoints.save(state_of(1), {}, {})
        with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 9 .* there are \[1\]"):
            checkpoints.read_meta(9)


@pytest.mark.parametrize("shape", [(8,), (2, 4)])
def test_a_checkpoint_restores_into_any_sharding(tmp_path, shape):
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(shape), ("x", "y")[: len(shape)])
    split, whole = NamedSharding(mesh, P("x")), NamedSharding(mesh, P())
    params = {"w": jnp.arange(64.0).reshape(8, 8)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(TrainState(step=jnp.int32(1), params=params, opt_state={}), {}, {})
        target = TrainState(
            step=jax.ShapeDtypeStruct((), jnp.int32, sharding=whole),
            params={"w": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=split)},
            opt_state={},
        )
        restored = checkpoints.restore(target)[0]
        assert restored.params["w"].sharding == split
        assert restored.step.sharding == whole
        assert_same(restored.params, params)
        checkpoints.save(restored.replace(step=restored.step + 1), {}, {})  # and back from there
        assert_same(checkpoints.restore_params(), params)


def test_a_step_that_is_there_is_not_written_over(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_of(1), {}, {})
        with pytest.raises(SaveError, match="step 1 is there already in"):
            checkpoints.save(state_of(1, seed=1), {}, {})
        checkpoints.save(state_of(2), {}, {})
        assert_same(checkpoints.restore(abstract(state_of(1)), 1)[0], state_of(1))


def test_a_folder_that_cannot_be_made_is_an_error_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match="file/checkpoints"):
        Checkpoints(tmp_path / "file" / "checkpoints")


def failure_of(checkpoints, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            checkpoints.check()
        except SaveError as error:
            return error
        time.sleep(0.01)
    return None


def test_a_save_that_fails_in_the_background_is_raised_by_check_again_and_again(tmp_path, capfd):
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder)
    checkpoints.save(state_of(1), {}, {})
    checkpoints.wait()
    folder.rename(tmp_path / "elsewhere")
    folder.write_text("a file where the folder was")
    try:
        checkpoints.save(state_of(2), {}, {})
    except SaveError as error:
        first = error
    else:
        first = failure_of(checkpoints)
    assert f"step 2 cannot be saved in {folder}" in str(first)
    assert "Not a directory" in str(first)
    for call in (
        checkpoints.check,
        checkpoints.wait,
        lambda: checkpoints.save(state_of(3), {}, {}),
        checkpoints.close,
    ):
        with pytest.raises(SaveError, match="step 2"):
            call()
    assert capfd.readouterr() == ("", "")


FULL_DISK = """
import resource, signal, sys
import numpy as np
from jaxformer.train.checkpoint import Checkpoints, SaveError
from jaxformer.train.state import TrainState

def state(step, size):
    w = np.random.default_rng(0).normal(size=size).astype(np.float32)
    return TrainState(step=np.int32(step), params={"w": w}, opt_state={})

with Checkpoints(sys.argv[1]) as checkpoints:
    checkpoints.save(state(1, 10), {}, {})
    checkpoints.wait()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit then fails, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    checkpoints.save(state(2, 100_000), {}, {})
"""


def python(code, *arguments, **options):
    env = os.environ | {"XLA_FLAGS": ""}
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_a_full_disk_stops_the_run_with_the_reason_and_spares_what_is_there(tmp_path):
    process = python(FULL_DISK, tmp_path)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 1
    last = err.splitlines()[-1]
    assert "SaveError: step 2 cannot be saved in" in err
    assert "File too large" in last
    assert out == ""
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1]
        want = np.random.default_rng(0).normal(size=10).astype(np.float32)
        assert_same(checkpoints.restore_params()["w"], want)


SAVING = """
import itertools, sys
import numpy as np
from jaxformer.train.checkpoint import Checkpoints
from jaxformer.train.state import TrainState

with Checkpoints(sys.argv[1], keep=2) as checkpoints:
    for step in itertools.count((checkpoints.latest() or 0) + 1):
        draw = np.random.default_rng(step)
        params = {name: draw.normal(size=(200, 100)).astype(np.float32) for name in "abcdef"}
        checkpoints.save(TrainState(step=np.int32(step), params=params, opt_state={}), {"n": step}, {})
        print(step, flush=True)
"""


def test_the_newest_checkpoint_is_whole_after_kills_in_the_middle_of_saving(tmp_path):
    delays = random.Random(0)
    for _ in range(2):
        process = python(SAVING, tmp_path)
        begun = [int(process.stdout.readline()) for _ in range(4)]
        time.sleep(delays.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with Checkpoints(tmp_path) as checkpoints:
            step = checkpoints.latest()
            assert step >= begun[-1] - 1
            for complete in checkpoints.steps():  # there is no moment at which a step is there without its checksums
                assert checksums.read(tmp_path / str(complete)) is not None
            draw = np.random.default_rng(step)
            want = {name: draw.normal(size=(200, 100)).astype(np.float32) for name in "abcdef"}
            target = TrainState(step=jnp.int32(0), params=want, opt_state={})
            restored, data, _ = checkpoints.restore(abstract(target))
            assert_same(restored.params, want)
            assert (int(restored.step), data) == (step, {"n": step})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_of(step + 1000), {}, {})
    names = {entry.name for entry in tmp_path.iterdir()}
    assert not {name for name in names if "tmp" in name}


def test_a_half_deleted_checkpoint_is_no_checkpoint_and_goes(tmp_path):
    fill(tmp_path, {1: None, 2: None, 3: None})
    (tmp_path / "discarded").mkdir()
    half = (tmp_path / "1").rename(tmp_path / "discarded" / "1")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [2, 3]
    assert not half.exists()


def test_orbax_says_nothing_to_the_user(tmp_path, capfd):
    with Checkpoints(tmp_path, best=("loss", "min")) as checkpoints:
        checkpoints.save(state_of(1), {}, {})
        checkpoints.save(state_of(2), {}, {}, {"loss": 1.0})
        checkpoints.restore(abstract(state_of(1)))
        checkpoints.read_meta()
    assert capfd.readouterr() == ("", "")
    assert json.loads((tmp_path / "2" / "metrics" / "metrics").read_text()) == {"loss": 1.0}
