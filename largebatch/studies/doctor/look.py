"""What one rank sees of its own machine, without asking the others."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import torch

from largebatch.data import places, sets
from largebatch.errors import UserError
from largebatch.machine import distributed, launched
from largebatch.records import circumstances
from largebatch.studies.doctor.facts import Examined

TENSORBOARD_PORT = 6006


def look(folder: Path, asked: str) -> tuple[Examined, torch.device]:
    """What this rank sees by itself."""
    seen_device, device = device_seen(asked)
    place = launched.place_of(os.environ)
    memory = Path("/dev/shm")  # noqa: S108  # looked at, never written
    temporary = Path(tempfile.gettempdir())
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    names = [name for name, known in sets.table().items() if known.origin.folders]
    seen = {
        "rank": distributed.rank(),
        "local_rank": distributed.local_rank(),
        "host": socket.gethostname(),
        "launched_by": place.source if place else None,
        "address": f"{place.address}:{place.port}" if place else None,
        "device": seen_device,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "versions": circumstances.versions(),
        "data_folder": str(places.data_folder()),
        "data_sets": [name for name in names if places.find(name)],
        "free_bytes": {"run_folder": free(folder), "temporary_folder": free(temporary)},
        "temporary_folder": str(temporary),
        "shared_memory_bytes": shutil.disk_usage(memory).total if memory.is_dir() else None,
        "open_files": None if soft == resource.RLIM_INFINITY else soft,
        "interfaces": [name for _, name in socket.if_nameindex()],
        "environment": {
            key: value for key, value in os.environ.items() if key.startswith(("PET_NN", "GLOO_", "NCCL_"))
        },
        "tensorboard_open": open_on_all_interfaces(TENSORBOARD_PORT),
        "recipe": None,
        "complaints": [],
    }
    return seen, device


def device_seen(asked: str) -> tuple[Examined, torch.device]:
    problem = None
    try:
        device = distributed.choose_device(asked)
    except UserError as error:
        problem, device = str(error), torch.device("cpu")
    seen: Examined = {
        "type": device.type,
        "problem": problem,
        "visible": torch.cuda.device_count(),
        "driver": nvidia_driver(),
        "torch_cuda": torch.version.cuda,
        "asked": asked,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        seen |= {
            "name": properties.name,
            "bytes": properties.total_memory,
            "uuid": str(getattr(properties, "uuid", "")),
        }
    return seen, device


def nvidia_driver() -> str | None:
    """The driver's version; None where there is no driver, or no program to ask it."""
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.partition("\n")[0].strip() or None if answer.returncode == 0 else None


def existing(folder: Path) -> Path:
    """The folder, or the one nearest above it that is there."""
    return next(place for place in (folder, *folder.parents, Path()) if place.is_dir())


def free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def open_on_all_interfaces(port: int) -> bool:
    """Whether something listens at this port for other machines, too; as Linux tells it."""
    listening = "0A"
    for table, everywhere in (("/proc/net/tcp", "0" * 8), ("/proc/net/tcp6", "0" * 32)):
        try:
            rows = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        if any(row.split()[1] == f"{everywhere}:{port:04X}" and row.split()[3] == listening for row in rows):
            return True
    return False
