"""The ready files that start a run on a cluster: they say what the command line understands."""

import itertools
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml  # flax depends on it

from jaxformer import distributed
from jaxformer.commands.train import Options, load, parse

ROOT = Path(__file__).parents[1]
JOBS = ROOT / "configs" / "jobs"


def options(line: str) -> Options:
    """What `jaxformer train` makes of a line of shell, with the variables replaced that the file itself sets."""
    for variable, value in (("$JOB_COMPLETION_INDEX", "3"), ('"$config"', "configs/quickstart.py"), ('"$@"', "")):
        line = line.replace(variable, value)
    words = shlex.split(line)
    config, *rest = words[words.index("train") + 1 :]
    return parse(load(ROOT / config), rest)


def test_the_job_of_kubernetes_names_its_own_parts():
    service, job = yaml.safe_load_all((JOBS / "gke.yaml").read_text())
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (line,) = container["args"]
    launch = options(line).launch
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert (spec["completionMode"], spec["completions"]) == ("Indexed", spec["parallelism"])
    host, port = launch.coordinator.split(":")
    assert host == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert int(port) == container["ports"][0]["containerPort"]
    assert (launch.processes, launch.process) == (spec["completions"], 3)
    assert distributed.problems(launch, None) == []
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"]: options(line).experiment.folder for volume in pod["volumes"]}


def test_its_lines_for_a_tpu_slice_belong_where_they_stand():
    text = re.sub("^( +)# ", r"\1", (JOBS / "gke.yaml").read_text(), flags=re.MULTILINE)
    _, job = yaml.safe_load_all(text)
    pod = job["spec"]["template"]["spec"]
    assert set(pod["nodeSelector"]) == {f"cloud.google.com/gke-tpu-{what}" for what in ("accelerator", "topology")}
    assert pod["containers"][0]["resources"] == {"limits": {"google.com/tpu": 4}}


def test_the_script_for_slurm_is_one_and_its_options_are_known():
    file = JOBS / "slurm.sbatch"
    subprocess.run(["bash", "-n", file], check=True)
    text = file.read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("srun"))
    assert options(line).launch == distributed.Launch(heartbeat=60)  # srun tells the rest
    assert [*itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())][-1].startswith("#SBATCH")


@pytest.mark.parametrize(
    ("code", "requeued"), [(0, False), (1, False), (130, True), (distributed.LOST, True), (134, True)]
)
def test_slurm_starts_a_stopped_run_again_and_no_other(tmp_path, code, requeued):
    for name, body in (("srun", f"exit {code}"), ("scontrol", 'echo "$@"')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    command = ["bash", str(JOBS / "slurm.sbatch")]
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (code, "requeue 7\n" if requeued else "")
