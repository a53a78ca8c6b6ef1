"""A checkpoint belongs to no device: it restores on any number of them, in any layout, bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxformer.train import checksums
from jaxformer.train.checkpoint import Checkpoints
from jaxformer.train.state import TrainState

OPTIMIZER = optax.adamw(0.1)
SHAPES = {"embed": ((16, 8), jnp.bfloat16), "kernel": ((8, 24), jnp.float32), "scale": ((8,), jnp.float32)}


def state_of(step):
    """Every leaf drawn at random, on one device."""
    draw = np.random.default_rng(step)
    params = {name: jnp.zeros(shape, dtype) for name, (shape, dtype) in SHAPES.items()}
    shapes = TrainState(step=jnp.int32(step), params=params, opt_state=OPTIMIZER.init(params))
    drawn = jax.tree.map(lambda leaf: jnp.asarray(draw.normal(size=leaf.shape) * 100, leaf.dtype), shapes)
    return drawn.replace(step=jnp.int32(step))


def homes(state, shape):
    """Matrices split along both axes of a mesh of this shape, and all else on each device; None: one device."""
    if shape is None:
        return jax.tree.map(lambda leaf: jax.sharding.SingleDeviceSharding(jax.devices()[0]), state)
    devices = np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape)
    mesh = Mesh(devices, ("x", "y"))
    return jax.tree.map(lambda leaf: NamedSharding(mesh, P("x", "y") if leaf.ndim == 2 else P()), state)


def move(folder, step, shape):
    """Restore a step into this layout, compare it with what it was, and save it from there as the next."""
    want = state_of(1).replace(step=jnp.int32(step))
    places = homes(want, shape)
    target = jax.tree.map(
        lambda leaf, home: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=home), want, places
    )
    with Checkpoints(folder) as checkpoints:
        state, data, meta = checkpoints.restore(target)
        assert (data, meta) == ({"n": 1}, {"m": [1, None]})
        for got, leaf, home in zip(*map(jax.tree.leaves, (state, want, places)), strict=True):
            assert got.sharding.is_equivalent_to(home, leaf.ndim)
            assert np.asarray(got).tobytes() == np.asarray(leaf).tobytes()
        if step == 1:
            for got, leaf in zip(*map(jax.tree.leaves, (checkpoints.restore_params(), want.params)), strict=True):
                assert got.devices() == {jax.devices()[0]}
                assert np.asarray(got).tobytes() == np.asarray(leaf).tobytes()
        checkpoints.save(state.replace(step=state.step + 1), data, meta)


def elsewhere(folder, step, shape, devices):
    """`move` in a process that has so many devices."""
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    code = f"import jax; assert jax.device_count() == {devices}; import test_checkpoint_devices as here; "
    code += f"here.move({str(folder)!r}, {step}, {shape})"
    subprocess.run([sys.executable, "-W", "error", "-c", code], env=environment, check=True, timeout=300)


def test_one_device_then_eight_then_two_then_another_shape_of_eight(tmp_path):
    state = jax.device_put(state_of(1), homes(state_of(1), None))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, {"n": 1}, {"m": [1, None]})
    elsewhere(tmp_path, 1, None, devices=1)
    move(tmp_path, 2, (2, 4))
    elsewhere(tmp_path, 3, (2, 1), devices=2)
    move(tmp_path, 4, (8, 1))
    elsewhere(tmp_path, 5, None, devices=1)
    saved = [checksums.read(tmp_path / str(step))["saved"]["devices"] for step in (4, 5, 6)]
    assert saved == [2, 8, 1]


@pytest.mark.parametrize("kind", ["TPU_7(process=3,(1,2,3,0))", "cuda:5", "cpu:63"])
def test_the_devices_that_it_was_saved_from_need_not_exist(tmp_path, kind):
    """The file in which orbax notes shardings is rewritten as a machine that is not here would have."""
    state = jax.device_put(state_of(1), homes(state_of(1), (2, 4)))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, {"n": 1}, {"m": [1, None]})
    named = {"sharding_type": "NamedSharding", "shape": [16, 16], "axis_names": ["data", "fsdp"], "axis_types": None}
    named |= {"partition_spec": [["data", "fsdp"]], "memory_kind": "unpinned_host", "device_mesh": None}
    single = {"sharding_type": "SingleDeviceSharding", "device_str": kind}
    for number, path in enumerate(sorted(tmp_path.glob("1/*/_sharding"))):
        there = json.loads(path.read_text())
        path.write_text(json.dumps({name: json.dumps((named, single)[number % 2]) for name in there}))
    assert number == 1
    checksums.write(tmp_path / "1")
    assert checksums.damages(tmp_path / "1") == []
    move(tmp_path, 1, (4, 2))
    elsewhere(tmp_path, 2, None, devices=1)


def test_parameters_are_read_without_knowing_their_tree_where_there_is_one_device(tmp_path):
    state = jax.device_put(state_of(1), homes(state_of(1), (4, 2)))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, {}, {"m": 1})
    code = f"""
import jax, numpy as np
from jaxformer.train.checkpoint import Checkpoints
with Checkpoints({str(tmp_path)!r}, read_only=True) as checkpoints:
    for name, leaf in checkpoints.restore_params().items():
        print(name, leaf.shape, leaf.dtype, np.asarray(leaf).tobytes().hex())
"""
    environment = os.environ | {"XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    lines = [f"{n} {p.shape} {p.dtype} {np.asarray(p).tobytes().hex()}" for n, p in sorted(state.params.items())]
    assert done.stdout.splitlines() == lines
    assert done.stderr == ""
