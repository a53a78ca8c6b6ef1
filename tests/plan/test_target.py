"""The devices that a plan is for."""

import importlib.util

import jax
import pytest

from jaxformer import machine
from jaxformer.plan import target


@pytest.mark.parametrize("name", ["v5x:2x2", "v5e", "v5e:four", "cpu:0", "cpu", "v5e-8", ""])
def test_what_is_no_target_is_told_what_there_is(name):
    with pytest.raises(ValueError, match=r"no such topology; there are v5e:1x1 to v5e:16x16, .*v5p.*cpu:8.*local"):
        target.find(name)


def test_without_the_compiler_a_tpu_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "jaxformer\[tpu\]"') as error:
        target.find("v5e:4x4")
    assert error.value.name is None  # what Python itself did not find would be shown as a fault of ours


def test_cpu_devices_share_the_memory_of_their_host():
    found = target.find("cpu:4")
    assert (found.platform, len(found.devices), found.chip) == ("cpu", 4, None)
    assert found.memory == machine.memory()[1] / 4
    assert target.find("local").devices == jax.devices()


def test_more_cpu_devices_than_there_are_want_a_new_process():
    with pytest.raises(ValueError, match="cpu:9: jax has started with 8 devices"):
        target.find("cpu:9")
