"""Who started this process, and as which rank of how many: read from the environment, without torch.

Looked at in this order; the first that answers holds:

    a launcher    RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT: torchrun, deepspeed, Kubeflow's PyTorchJob
    Slurm         a step of several tasks (srun), one task per device; rank zero is on the first host of the step
    Open MPI      mpirun, one process per device
    Kubernetes    an Indexed Job with WORLD_SIZE and MASTER_ADDR, one pod per rank

Kubeflow's ``PET_*`` variables are torchrun's own options, meant for a torchrun in the pod: here they mean nothing yet.

A port that nobody stated is derived from the job's number or name, the same on every rank: one of :data:`PORTS`, which
lies below the ports that Linux hands out by itself.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from largebatch.errors import UserError

PORTS = range(20_000, 29_000)
TORCH_PORT = 29_500  # what torch itself takes where nobody says otherwise
VARIABLES = (  # numbers and addresses that we, torch and DeepSpeed read
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK",
    "GROUP_WORLD_SIZE", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "OMP_NUM_THREADS",
)  # fmt: skip
SPECIAL_STEPS = 4_294_967_000  # Slurm numbers its batch, external and interactive steps just below 2**32


@dataclass(frozen=True)
class Place:
    """One process among the ``world_size`` of a run. ``source`` is the launcher, slurm, mpi or kubernetes."""

    rank: int
    local_rank: int
    world_size: int
    address: str
    port: int
    source: str

    @property
    def variables(self) -> dict[str, str]:
        """As torch's ``env://`` reads it."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


def adopt(environ: MutableMapping[str, str]) -> Place | None:
    """Add what torch's ``env://`` misses where several processes were started; nothing that is set is changed.

    What is set to nothing is removed: for us it is not set, and other readers would take it for a number.
    """
    place = place_of(environ)
    for key in VARIABLES:
        if not environ.get(key, "-").strip():
            del environ[key]
    if place is not None and place.world_size > 1:
        for key, value in place.variables.items():
            if not environ.get(key):
                environ[key] = value
    return place


def place_of(environ: Mapping[str, str]) -> Place | None:
    """Where this process stands; None for one that was started by hand, alone."""
    if environ.get("RANK"):
        return _by_launcher(environ)
    for scheduler in (_by_slurm, _by_mpi, _by_kubernetes):
        if place := scheduler(environ):
            return _checked(place)
    if number(environ, "WORLD_SIZE", 1) > 1:
        raise UserError(
            f"WORLD_SIZE = {environ['WORLD_SIZE']} is set, RANK is not; unset it, or start by torchrun, srun or mpirun"
        )
    return None


def _by_launcher(environ: Mapping[str, str]) -> Place:
    rank = number(environ, "RANK")
    if not environ.get("WORLD_SIZE"):
        raise UserError(f"RANK = {rank} is set, WORLD_SIZE is not; set both, or neither")
    world_size = number(environ, "WORLD_SIZE")
    address = environ.get("MASTER_ADDR")
    if not address and world_size > 1:
        raise UserError(
            f"RANK = {rank} and WORLD_SIZE = {world_size} are set, MASTER_ADDR is not; it should name rank 0's host"
        )
    local_rank = number(environ, "LOCAL_RANK", _scheduled_local_rank(environ, rank))
    port = number(environ, "MASTER_PORT", TORCH_PORT)
    return _checked(Place(rank, local_rank, world_size, address or "127.0.0.1", port, "launcher"))


def _scheduled_local_rank(environ: Mapping[str, str], rank: int) -> int:
    """That of the scheduler, where it counts the ranks alike; else 0: every rank has a pod or host of its own."""
    for of_all, of_host in (("SLURM_PROCID", "SLURM_LOCALID"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")):
        if environ.get(of_all) == str(rank):
            return number(environ, of_host, 0)
    return 0


def _by_slurm(environ: Mapping[str, str]) -> Place | None:
    """A step that srun started. A shell of salloc and the batch script itself are none, nor is a step of one task."""
    if not environ.get("SLURM_STEP_ID") or number(environ, "SLURM_STEP_ID") >= SPECIAL_STEPS:
        return None
    if number(environ, "SLURM_STEP_NUM_TASKS", 1) < 2:
        return None
    # Steps of one job, and jobs that follow one another, get ports of their own.
    job = number(environ, "SLURM_JOB_ID", 0) + 1009 * number(environ, "SLURM_STEP_ID")
    return Place(
        number(environ, "SLURM_PROCID"),
        number(environ, "SLURM_LOCALID"),
        _world_size(environ, "SLURM_STEP_NUM_TASKS"),
        environ.get("MASTER_ADDR") or first_host(environ.get("SLURM_STEP_NODELIST", "")),
        number(environ, "MASTER_PORT", PORTS[job % len(PORTS)]),
        "slurm",
    )


def _by_mpi(environ: Mapping[str, str]) -> Place | None:
    if number(environ, "OMPI_COMM_WORLD_SIZE", 1) < 2:
        return None
    world_size = _world_size(environ, "OMPI_COMM_WORLD_SIZE")
    address = environ.get("MASTER_ADDR")
    if not address and number(environ, "OMPI_COMM_WORLD_LOCAL_SIZE", 0) == world_size:
        address = "127.0.0.1"
    # mpirun's own contact point; Open MPI 5 gives none but that of a daemon on each host.
    if not address and (found := re.search(r"tcp://([\w.-]+)", environ.get("OMPI_MCA_orte_hnp_uri", ""))):
        address = found[1]
    if not address:
        raise UserError(
            "mpirun started this process on one of several hosts and does not say where rank 0 is; "
            "add `-x MASTER_ADDR=<host of rank 0>` to mpirun"
        )
    port = PORTS[zlib.crc32(environ.get("PMIX_NAMESPACE", "").encode()) % len(PORTS)]
    return Place(
        number(environ, "OMPI_COMM_WORLD_RANK"),
        number(environ, "OMPI_COMM_WORLD_LOCAL_RANK"),
        world_size,
        address,
        number(environ, "MASTER_PORT", port),
        "mpi",
    )


def _by_kubernetes(environ: Mapping[str, str]) -> Place | None:
    """A pod of an Indexed Job whose writer means one run; other Indexed Jobs are many runs, and have no WORLD_SIZE."""
    if not environ.get("JOB_COMPLETION_INDEX") or number(environ, "WORLD_SIZE", 1) < 2:
        return None
    if not environ.get("MASTER_ADDR"):
        raise UserError(
            f"WORLD_SIZE = {environ['WORLD_SIZE']} and JOB_COMPLETION_INDEX are set, MASTER_ADDR is not; it should "
            "name the pod of index 0, such as <job>-0.<service>"
        )
    return Place(
        number(environ, "JOB_COMPLETION_INDEX"),
        number(environ, "LOCAL_RANK", 0),
        number(environ, "WORLD_SIZE"),
        environ["MASTER_ADDR"],
        number(environ, "MASTER_PORT", TORCH_PORT),
        "kubernetes",
    )


def _world_size(environ: Mapping[str, str], key: str) -> int:
    """The scheduler's count, which a WORLD_SIZE set by hand must not contradict."""
    world_size = number(environ, key)
    if number(environ, "WORLD_SIZE", world_size) != world_size:
        raise UserError(f"WORLD_SIZE = {environ['WORLD_SIZE']} contradicts {key} = {world_size}; unset WORLD_SIZE")
    return world_size


def _checked(place: Place) -> Place:
    if place.world_size < 1:
        raise UserError(f"WORLD_SIZE = {place.world_size} should be 1 or more")
    if not 0 <= place.rank < place.world_size:
        raise UserError(
            f"RANK = {place.rank} does not fit WORLD_SIZE = {place.world_size}; "
            f"it should be 0 to {place.world_size - 1}"
        )
    if not 0 <= place.local_rank < place.world_size:
        raise UserError(
            f"LOCAL_RANK = {place.local_rank} does not fit WORLD_SIZE = {place.world_size}; "
            f"it should be 0 to {place.world_size - 1}"
        )
    if not 0 < place.port < 65_536:
        raise UserError(f"MASTER_PORT = {place.port} should be 1 to 65535")
    return place


def number(environ: Mapping[str, str], key: str, default: int | None = None) -> int:
    """A whole number; a variable that is set to nothing counts as not set."""
    text = (environ.get(key) or "").strip()
    if not text and default is not None:
        return default
    if not text:
        raise UserError(f"{key} is not set, and other variables of its launcher are; it should be a whole number")
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise UserError(f"{key} = {text!r} should be a whole number")
    return int(text)


def first_host(hosts: str) -> str:
    """The first of Slurm's host list: ``node[003-007,9],other`` is node003 first."""
    if not (whole := re.match(r"(?:[^,\[\]\s]|\[\w[\w,-]*\])+(?=,|$)", hosts.strip())):
        raise UserError(f"{hosts!r} is not a host list; set MASTER_ADDR to the host of rank 0")
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", whole[0])
