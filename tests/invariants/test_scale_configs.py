"""The experiments of configs/scale/, which no machine here could run: all but the numbers is built."""

import runpy
from pathlib import Path

import jax
import pytest

from jaxformer import codec
from jaxformer.experiment import Experiment
from jaxformer.plan import target
from jaxformer.plan.compiling import sketched

FILES = sorted((Path(__file__).parents[2] / "configs" / "scale").glob("*.py"))
PARAMETERS = {
    "llama_1b": 1_235_814_400,
    "llama_8b": 8_030_261_248,
    "llama_70b": 70_553_706_496,
    "t5_xl": 2_849_757_184,
}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_is_valid_and_its_step_can_be_sketched(file):
    experiment = runpy.run_path(str(file))["config"]()
    assert isinstance(experiment, Experiment)
    assert experiment.name == file.stem
    assert codec.from_json(codec.to_json(experiment), Experiment) == experiment
    step = sketched(experiment, target.find("cpu:1"))
    assert sum(leaf.size for leaf in jax.tree.leaves(step.state.params)) == PARAMETERS[file.stem]
    assert {leaf.shape[0] for leaf in step.batch.values()} == {experiment.rows}
