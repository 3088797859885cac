"""Who is speaking: ranks, jobs and names, from what launchers set."""

import pytest

from gpumon.telemetry.resource import JOB_ID_VARIABLES, job_id, ranks, resource, script_name, service_name


def named(rank, local_rank, world_size):
    return {"gpumon.rank": rank, "gpumon.local_rank": local_rank, "gpumon.world_size": world_size}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, named(0, 0, 1)),
        ({"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}, named(5, 1, 8)),
        ({"SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "4"}, named(2, 0, 4)),
        ({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"}, named(3, 0, 4)),
        ({"RANK": "1", "SLURM_PROCID": "0", "WORLD_SIZE": "2"}, named(1, 0, 2)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "16"}, named(0, 0, 1)),
        ({"RANK": "", "WORLD_SIZE": "many"}, named(0, 0, 1)),
    ],
    ids=["alone", "torchrun", "srun", "mpirun", "torchrun in Slurm", "sbatch script", "nonsense"],
)
def test_ranks(environment, expected):
    """Each launcher's own variables; outside of one, rank 0 of 1."""
    assert ranks(environment) == expected


def test_job_id_is_the_first_that_is_set():
    """The user's own variable comes first, the scheduler's last."""
    everything = {name: name.lower() for name in JOB_ID_VARIABLES}

    assert job_id(everything) == "gpumon_job_id"
    assert job_id({"SLURM_JOB_ID": "77", "TORCHELASTIC_RUN_ID": "run"}) == "run"
    assert job_id({"SLURM_JOB_ID": "77"}) == "77"
    assert job_id({}) is None
    assert job_id({"TORCHELASTIC_RUN_ID": "none"}) is None
    assert job_id({"SLURM_JOB_ID": "77", "TORCHELASTIC_RUN_ID": "none"}) == "77"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["python", "train.py"], "train"),
        (["python", "-u", "-X", "dev", "-W", "ignore", "/home/me/fine_tune.py", "--lr", "1"], "fine_tune"),
        (["python", "-m", "pkg.train", "x"], "pkg.train"),
        (["python", "-c", "print()"], None),
        (["python"], None),
        (["/usr/bin/python3", "/opt/bin/accelerate"], "accelerate"),
    ],
)
def test_script_names(argv, expected):
    """A run is called after the script that a command runs."""
    assert script_name(argv) == expected


def test_service_name_has_an_order(monkeypatch):
    """Argument, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, script."""
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "team=vision, service.name = from-attributes")
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    assert service_name() == "from-attributes"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "from-variable")
    assert service_name() == "from-variable"
    assert service_name("from-argument") == "from-argument"


def test_each_process_is_an_instance_of_its_own(monkeypatch):
    """Every process of a run has its own service.instance.id, and shares the run's id."""
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    first, second = (resource("vision", "run").attributes for _ in range(2))

    assert first["service.instance.id"] != second["service.instance.id"]
    assert first["gpumon.run.id"] == second["gpumon.run.id"] == "run"
    assert first["gpumon.job.id"] == "77"
    assert first["service.name"] == "vision"
    assert first["host.name"]
    assert first["process.pid"]
    assert first["telemetry.sdk.name"] == "opentelemetry"
