import jax
import numpy as np
import pytest

from jaxformer import distributed
from jaxformer.distributed import Launch, launcher
from jaxformer.sharding import MeshConfig, local_rows, make_mesh, place_batch, place_rows

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
OPEN_MPI = {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:3", "OMPI_COMM_WORLD_SIZE": "2"}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
STARTED = [
    ({}, None),
    (SLURM, "Slurm"),
    (SLURM | {"SLURM_NTASKS": "1"}, None),  # a shell
    ({name: SLURM[name] for name in ("SLURM_JOB_ID", "SLURM_NTASKS")}, None),  # a script, outside of srun
    (OPEN_MPI, "Open MPI"),
    (OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"}, None),
    ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, "TPU"),
    ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),  # a notebook
    ({"TPU_PROCESS_ADDRESSES": "local"}, None),
    ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "TPU"),
    ({"TPU_ML_PLATFORM": "JAX"}, "TPU"),  # jax then asks the machine's metadata server
    ({"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1"}, None),
    (POD, None),  # a notebook
    (POD | {"JOB_COMPLETION_INDEX": "0"}, "Kubernetes"),
    (POD | {"JOB_COMPLETION_INDEX": "0", "TPU_WORKER_HOSTNAMES": "a,b"}, "TPU"),
]


@pytest.fixture
def alone(monkeypatch):
    """No launcher's variable in the environment."""
    for name in {name for variables, _ in STARTED for name in variables}:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("variables", "name"), STARTED)
def test_launchers_are_known_by_what_they_leave_behind(alone, monkeypatch, variables, name):
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert launcher() == name


@pytest.mark.parametrize("launch", [Launch(), Launch(processes=1), Launch("here:1", 1, 0)])
def test_one_process_waits_for_nobody(alone, launch):
    distributed.join(launch)
    assert not jax.distributed.is_initialized()


def test_every_missing_or_wrong_option_is_named_at_once(alone, monkeypatch):
    with pytest.raises(ValueError, match="--coordinator and --processes missing: nothing here tells"):
        distributed.join(Launch(process=1))
    with pytest.raises(ValueError) as error:
        distributed.join(Launch("nowhere", 2, 2, heartbeat=0))
    for line in ("--coordinator nowhere: expected HOST:PORT", "--process 2: ", "--heartbeat 0: "):
        assert f"\n  - {line}" in str(error.value)
    with pytest.raises(ValueError, match="--processes 0: expected at least 1"):
        distributed.join(Launch("here:1", 0, 0))
    for name, value in (POD | {"JOB_COMPLETION_INDEX": "0"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"--processes and --process missing: .*jax\[k8s\]"):
        distributed.join(Launch("here:1"))


@pytest.mark.parametrize(
    "config", [MeshConfig(), MeshConfig(2, 2, 2), MeshConfig(1, 4, 1, 2), MeshConfig(1, 1, 8)], ids=str
)
def test_a_batch_made_in_parts_is_the_batch_made_whole(config):
    mesh, size = make_mesh(config), 16
    batch = {"tokens": np.arange(size * 3).reshape(size, 3), "label": np.arange(size, dtype=np.float32)}
    stretches = local_rows(mesh, size)
    assert [row for stretch in stretches for row in range(size)[stretch]] == list(range(size))
    parts = [{name: rows[stretch] for name, rows in batch.items()} for stretch in stretches]
    whole, made = place_batch(batch, mesh), place_rows(parts, size, mesh)
    assert made.keys() == whole.keys()
    for name, rows in whole.items():
        np.testing.assert_array_equal(made[name], rows)
        assert made[name].sharding == rows.sharding
        assert made[name].dtype == rows.dtype
