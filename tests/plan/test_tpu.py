"""The step of a small model, compiled for TPUs that are not here."""

import dataclasses

import pytest

from jaxformer.experiment import Experiment
from jaxformer.families import llama
from jaxformer.plan import target
from jaxformer.plan.chips import CHIPS, SLICES
from jaxformer.plan.report import make_plan
from jaxformer.sharding import MeshConfig
from jaxformer.text.tokenizer import TokenizerConfig

pytestmark = pytest.mark.tpu
MODEL = llama.config(
    {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1024,
    }
)
SMALL = Experiment("small", 1000, MODEL, tokenizer=TokenizerConfig(vocab_size=512), rows=8, length=256, remat="full")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mesh"), [("v5e:2x2", MeshConfig(data=1, fsdp=4)), ("v6e:1x1", MeshConfig())])
def test_a_small_step_compiles_with_splash_attention_and_fits(name, mesh):
    plan = make_plan(dataclasses.replace(SMALL, mesh=mesh), target.find(name))
    assert plan.fits is True
    assert plan.device == CHIPS[name[:3]].kind
    assert plan.kernels >= 3  # forward, and the gradients of queries and of keys and values
    assert plan.memory.peak > plan.memory.parameters + plan.memory.optimizer > 0
    assert plan.roofline is not None
    assert 0 < plan.roofline.utilization[1] < plan.roofline.utilization[0] <= 1.2
    assert bool(plan.collectives) == (plan.devices > 1)


def test_what_has_no_room_is_said_in_the_compilers_words():
    """Of eight billion parameters, on the smallest chip there is."""
    e = dataclasses.replace(SMALL, model=llama.SIZES["llama-3-8b"], rows=1)
    plan = make_plan(e, target.find("v5e:1x1"))
    assert plan.fits is False
    assert "exceeds available HBM (15.75G)" in plan.refused or "Ran out of memory" in plan.refused
    assert plan.memory.parameters == 4 * plan.parameters == 4 * 8_030_261_248


@pytest.mark.parametrize("name", [f"{kind}:{shape}" for kind, shapes in SLICES.items() for shape in shapes])
def test_every_slice_that_is_told_of_exists(name):
    devices = target.find(name).devices
    assert len(devices) == eval(name.partition(":")[2].replace("x", "*"))
    assert {device.device_kind for device in devices} == {CHIPS[name[:3]].kind}


def test_a_slice_that_cannot_be_is_told_which_can():
    with pytest.raises(ValueError, match=r"v5e:3x3: no such slice; there are v5e:1x1, .*v5e:16x16"):
        target.find("v5e:3x3")
