"""A disk that is full, really: a small file system in memory, mounted for the test."""

import os
import re
import subprocess
import sys
import textwrap

import pytest

from jaxformer.train import checksums
from jaxformer.train.metrics import read_metrics
from jaxformer.train.retention import steps_in

CONFIG = """
    from dataclasses import replace

    from jaxformer.experiment import Experiment
    from jaxformer.optimizer import OptimizerConfig
    from jaxformer.testing import tiny_models
    from jaxformer.text.corpus import DataConfig
    from jaxformer.text.tokenizer import TokenizerConfig


    def config():
        return Experiment(
            name="mine",
            folder="{disk}",
            model=replace(tiny_models()["rotary"], vocab=320, width=512),
            steps=4,
            rows=8,
            length=16,
            save_every=1,
            evaluate_every=4,
            keep=4,
            data=DataConfig(files=("{books}/*.txt",), held_out=0),
            tokenizer=TokenizerConfig(vocab_size=320),
            optimizer=OptimizerConfig(warmup_steps=1),
        )
"""


def mount(*arguments):
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path):
    """A file system of 7 MiB of its own: a checkpoint of the run below takes 4 to 5."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    mount("-t", "tmpfs", "-o", "size=7m", "tmpfs", folder)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.slow
def test_a_full_disk_stops_the_run_with_the_reason_and_the_same_line_goes_on_with_more_room(disk, tmp_path):
    (tmp_path / "books").mkdir()
    for number in range(3):
        (tmp_path / "books" / f"{number}.txt").write_text(f"Book {number} tells of a lazy dog.\n" * 20)
    config = tmp_path / "config.py"
    config.write_text(textwrap.dedent(CONFIG).format(disk=disk, books=tmp_path / "books"))
    command = [sys.executable, "-W", "error", "-m", "jaxformer", "train", str(config)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = lambda: subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    folder = disk / "mine" / "checkpoints"
    done = run()
    assert done.returncode == 1
    reason = r"step 2 cannot be saved in (\S+) \([01] MiB are free on that disk\): .*No space left on device"
    said = re.fullmatch(rf"jaxformer: {reason}\n", done.stderr)
    assert said, done.stderr
    assert said[1] == str(folder)
    assert steps_in(folder) == [1]
    assert checksums.damages(folder / "1") == []
    assert run().returncode == 1  # and again, for nothing has changed
    assert steps_in(folder) == [1]
    mount("-o", "remount,size=60m", disk)
    done = run()
    assert done.returncode == 0, done.stderr
    assert "going on from step 1" in done.stdout
    assert steps_in(folder) == [1, 2, 3, 4]
    assert [checksums.damages(folder / str(step)) for step in steps_in(folder)] == [[], [], [], []]
    assert [line["step"] for line in read_metrics(disk / "mine") if "loss" in line["values"]] == [1, 2, 3, 4]
