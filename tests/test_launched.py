"""Who am I: environments as launchers and schedulers really set them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from programs import REPOSITORY

from largebatch.errors import UserError
from largebatch.machine.launched import PORTS, Place, adopt, first_host, place_of

TORCHRUN = {
    "LOCAL_RANK": "1",
    "RANK": "5",
    "GROUP_RANK": "1",
    "ROLE_RANK": "5",
    "LOCAL_WORLD_SIZE": "4",
    "WORLD_SIZE": "8",
    "MASTER_ADDR": "node003",
    "MASTER_PORT": "43917",
    "TORCHELASTIC_RESTART_COUNT": "0",
    "TORCHELASTIC_MAX_RESTARTS": "3",
    "TORCHELASTIC_RUN_ID": "4711",
    "OMP_NUM_THREADS": "1",
}
SRUN = {  # srun --nodes=5 --ntasks-per-node=2 --gpus-per-task=1
    "SLURM_JOB_ID": "8652143",
    "SLURM_JOBID": "8652143",
    "SLURM_STEP_ID": "0",
    "SLURM_STEPID": "0",
    "SLURM_NTASKS": "10",
    "SLURM_STEP_NUM_TASKS": "10",
    "SLURM_STEP_NUM_NODES": "5",
    "SLURM_STEP_TASKS_PER_NODE": "2(x5)",
    "SLURM_PROCID": "7",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "3",
    "SLURM_NODELIST": "node[003-006],other",
    "SLURM_JOB_NODELIST": "node[003-006],other",
    "SLURM_STEP_NODELIST": "node[003-006],other",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.3.12",
}
MPI_4 = {  # Open MPI 4, two hosts
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_UNIVERSE_SIZE": "4",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "PMIX_NAMESPACE": "1531576321",
    "PMIX_RANK": "3",
}
MPI_5 = {  # Open MPI 5: the server is a daemon on this very host
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "prterun-node16-3112@1",
    "PMIX_SERVER_URI41": "prterun-node16-3112@0.0;tcp4://127.0.0.1:38221",
}
INDEXED_JOB = {"JOB_COMPLETION_INDEX": "2", "WORLD_SIZE": "4", "MASTER_ADDR": "train-0.train", "HOSTNAME": "train-2"}
PYTORCHJOB = {  # Kubeflow's training operator without an elastic policy: one process per pod
    "PYTHONUNBUFFERED": "1",
    "MASTER_PORT": "23456",
    "PET_MASTER_PORT": "23456",
    "MASTER_ADDR": "train-master-0",
    "PET_MASTER_ADDR": "train-master-0",
    "WORLD_SIZE": "3",
    "RANK": "2",
    "PET_NODE_RANK": "2",
    "PET_NPROC_PER_NODE": "auto",
    "PET_NNODES": "3",
}
SLURM_PORT = PORTS[8652143 % len(PORTS)]


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        (TORCHRUN, Place(5, 1, 8, "node003", 43917, "launcher")),
        (SRUN, Place(7, 1, 10, "node003", SLURM_PORT, "slurm")),
        ({**SRUN, "MASTER_ADDR": "head", "MASTER_PORT": "29511"}, Place(7, 1, 10, "head", 29511, "slurm")),
        (MPI_4, Place(3, 1, 4, "10.96.0.1", place_of(MPI_4).port, "mpi")),
        ({**MPI_4, "MASTER_ADDR": "host0", "MASTER_PORT": "4000"}, Place(3, 1, 4, "host0", 4000, "mpi")),
        (MPI_5, Place(1, 1, 2, "127.0.0.1", place_of(MPI_5).port, "mpi")),
        (INDEXED_JOB, Place(2, 0, 4, "train-0.train", 29500, "kubernetes")),
        (PYTORCHJOB, Place(2, 0, 3, "train-master-0", 23456, "launcher")),
    ],
    ids=["torchrun", "srun", "srun with address", "mpi 4", "mpi 4 with address", "mpi 5", "indexed job", "pytorchjob"],
)
def test_a_started_process_finds_its_place(environ, place):
    assert place_of(environ) == place
    adopted = dict(environ)
    assert adopt(adopted) == place
    assert {key: adopted[key] for key in place.variables} == place.variables
    assert adopted | environ == adopted, "what was set stays"


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_JOB_NODELIST": "node[1-2]"},  # salloc
        {**SRUN, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},  # salloc's interactive step
        {key: value for key, value in SRUN.items() if "STEP" not in key} | {"SLURM_PROCID": "0"},  # the batch script
        {**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        {**MPI_5, "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
        {"JOB_COMPLETION_INDEX": "2"},  # many runs, one pod each
        {"PET_NNODES": "2", "PET_RDZV_ENDPOINT": "train-worker-0:23456", "PET_RDZV_BACKEND": "c10d"},  # for torchrun
        {"WORLD_SIZE": "1"},
        {"RANK": "", "WORLD_SIZE": ""},
    ],
    ids=["hand", "salloc", "interactive step", "sbatch", "one task", "mpi -n 1", "array", "PET", "one", "empty"],
)
def test_not_a_launch(environ):
    adopted = dict(environ)
    assert adopt(adopted) is None
    assert adopted == {key: value for key, value in environ.items() if value}


def test_a_launcher_inside_a_step_wins():
    """Slurm starts one torchrun per host; its workers see both."""
    place = place_of({**SRUN, **TORCHRUN})
    assert (place.rank, place.world_size, place.source) == (5, 8, "launcher")


def test_ranks_set_by_hand_in_a_step_get_its_local_ranks():
    by_hand = {"RANK": "7", "WORLD_SIZE": "10", "MASTER_ADDR": "node003", "MASTER_PORT": "29500"}
    assert place_of({**SRUN, **by_hand}) == Place(7, 1, 10, "node003", 29500, "launcher")


def test_ranks_agree_on_address_and_port_and_steps_do_not_share_ports():
    places = [place_of({**SRUN, "SLURM_PROCID": str(rank)}) for rank in range(10)]
    assert len({(place.address, place.port) for place in places}) == 1
    others = [{**SRUN, "SLURM_STEP_ID": "1"}, {**SRUN, "SLURM_JOB_ID": "8652144"}]
    assert len({places[0].port, *(place_of(other).port for other in others)}) == 3
    assert places[0].port in PORTS
    assert len({place_of({**MPI_4, "OMPI_COMM_WORLD_RANK": str(rank)}).port for rank in range(4)}) == 1


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({**TORCHRUN, "RANK": "8"}, "RANK = 8 does not fit WORLD_SIZE = 8; it should be 0 to 7"),
        ({**TORCHRUN, "RANK": "first"}, "RANK = 'first' should be a whole number"),
        ({**TORCHRUN, "RANK": "-1"}, "RANK = '-1' should be a whole number"),
        ({**TORCHRUN, "LOCAL_RANK": "9"}, "LOCAL_RANK = 9"),
        ({**TORCHRUN, "MASTER_PORT": "70000"}, "MASTER_PORT = 70000"),
        ({"RANK": "0"}, "RANK = 0 is set, WORLD_SIZE is not"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR is not"),
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE = 4 is set, RANK is not"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE = 0 should be 1 or more"),
        ({**SRUN, "WORLD_SIZE": "4"}, "WORLD_SIZE = 4 contradicts SLURM_STEP_NUM_TASKS = 10"),
        ({**SRUN, "SLURM_PROCID": ""}, "SLURM_PROCID is not set"),
        ({**SRUN, "SLURM_STEP_NODELIST": "node[3-"}, "'node[3-' is not a host list"),
        ({**SRUN, "SLURM_STEP_NODELIST": ""}, "'' is not a host list; set MASTER_ADDR to the host of rank 0"),
        ({**MPI_5, "OMPI_COMM_WORLD_SIZE": "4"}, "-x MASTER_ADDR="),
        ({**INDEXED_JOB, "MASTER_ADDR": ""}, "MASTER_ADDR is not"),
        ({**INDEXED_JOB, "JOB_COMPLETION_INDEX": "4"}, "RANK = 4 does not fit WORLD_SIZE = 4"),
    ],
)
def test_contradictions_are_told(environ, words):
    before = dict(environ)
    with pytest.raises(UserError) as told:
        adopt(environ)
    assert words in str(told.value)
    assert environ == before


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node[003-007,9],other", "node003"),
        ("node[9,003-007]", "node9"),
        ("other,node[1-2]", "other"),
        ("gpu-a100", "gpu-a100"),
        ("10-0-3-12", "10-0-3-12"),
        ("rack[1-2]node[04-09],login", "rack1node04"),
        ("cn[01-02].cluster.example", "cn01.cluster.example"),
        ("GPU71E4", "GPU71E4"),
    ],
)
def test_first_host_of_a_list(hosts, first):
    assert first_host(hosts) == first


@pytest.mark.parametrize("hosts", ["", ",a", "a[", "a[]", "a]b", "a b"])
def test_what_is_no_host_list(hosts):
    with pytest.raises(UserError):
        first_host(hosts)


@pytest.mark.parametrize(
    ("environ", "visible", "device"),
    [
        ({**SRUN, "LOCAL_RANK": "1"}, 1, "cuda:0"),  # --gpus-per-task=1: each task sees its own alone
        ({**SRUN, "LOCAL_RANK": "1"}, 2, "cuda:1"),
        (TORCHRUN, 4, "cuda:1"),
        ({**SRUN, **TORCHRUN}, 1, None),  # torchrun shows all of them: there is one too few
    ],
)
def test_the_device_of_a_rank(monkeypatch, environ, visible, device):
    import torch

    from largebatch.machine import distributed

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    for key in ("SLURM_LOCALID", "TORCHELASTIC_RUN_ID", "LOCAL_RANK"):
        monkeypatch.delenv(key, raising=False)
        if key in environ:
            monkeypatch.setenv(key, environ[key])
    if device is None:
        with pytest.raises(UserError, match="local rank 1 has no CUDA device: 1 visible"):
            distributed.choose_device("auto")
    else:
        assert str(distributed.choose_device("auto")) == device
    monkeypatch.undo()


@pytest.mark.worlds
def test_no_torch_is_loaded():
    code = "import largebatch.machine.launched, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0
