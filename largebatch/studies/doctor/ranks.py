"""What the ranks see, gathered, and what only ranks together can tell: an all-reduce, clocks, a shared folder.

The facts travel over gloo, whatever the devices are: a doctor must not need what it is asked about.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from largebatch.data import sets
from largebatch.errors import Lost
from largebatch.machine import distributed, launched
from largebatch.recipes import config
from largebatch.records import circumstances
from largebatch.records.files import write_text
from largebatch.studies.doctor.facts import Examined
from largebatch.studies.doctor.judge import judge
from largebatch.studies.doctor.look import existing, look
from largebatch.studies.doctor.recipe import of_recipe

SIZES = (4, 2**20, 16 * 2**20)  # bytes of an all-reduce: latency, a small model, a bucket of a large one
REPEATS = 5
JOIN_MINUTES = 5.0  # as long may one rank wait for another, too, that reads a large data set
FOLDER_SECONDS = 5.0  # what a network file system gets until a new file is seen


class NotTogether(Exception):
    """The ranks did not find each other."""


@contextlib.contextmanager
def together() -> Iterator[None]:
    """The group of all ranks, on the CPU; NotTogether where it does not come about in a few minutes."""
    group = distributed.group(torch.device("cpu"), timeout_minutes=JOIN_MINUTES)
    try:
        group.__enter__()
    except Lost as error:
        place = launched.place_of(os.environ)
        where = f"{place.world_size} ranks at {place.address}:{place.port}" if place else "ranks"
        reason = str(error.__cause__ or error).splitlines()[0]
        raise NotTogether(
            f"the {where} did not come together within {JOIN_MINUTES:g} minutes; check that all were started, that "
            f"MASTER_ADDR is rank 0's host and that its port is reachable ({reason})"
        ) from error
    try:
        yield
    finally:
        group.__exit__(None, None, None)


def examine(run: config.Run | None, command: str) -> Examined:
    """The facts of all ranks, ``findings`` among them, on every rank. Collective."""
    wanted = run.directory if run else Path("runs")
    folder = existing(wanted)
    seen, device = look(folder, run.device if run else "auto")
    if run is not None:
        seen["recipe"], seen["complaints"] = of_recipe(run, device, folder)
    ranks = distributed.gather(seen)
    facts: Examined = {
        "kind": "doctor",
        "ranks": ranks,
        "image_folder": run is None or sets.read_by_workers(run.data.name),
        "run_folder": {"path": str(wanted), **shared(folder)},
        "group": None,
        "command": command,
        "commit": circumstances.commit(),
    }
    if len(ranks) > 1:
        facts["clock_difference_seconds"] = clock_difference()
        facts["group"] = of_group(device, all(rank["device"]["type"] == "cuda" for rank in ranks))
    facts["findings"] = judge(facts)
    return distributed.from_first(facts)


def of_group(device: torch.device, on_cuda: bool) -> Examined:
    """How fast the ranks add up, by the backend that a run would take. Collective."""
    facts: Examined = {"backend": "nccl" if on_cuda else "gloo", "all_reduce": [], "problem": None}
    where = device if on_cuda else torch.device("cpu")
    try:
        group = dist.new_group(backend="nccl") if on_cuda else None
        for length in SIZES:
            seconds = all_reduce_seconds(torch.zeros(length // 4, device=where), group)
            moved = 2 * (distributed.world_size() - 1) / distributed.world_size() * length
            facts["all_reduce"].append(
                {"bytes": length, "seconds_median": seconds, "bus_bytes_per_second": moved / seconds}
            )
        if group is not None:
            dist.destroy_process_group(group)
    except dist.DistError as error:
        facts["problem"] = str(error).splitlines()[0]
    return facts


def clock_difference() -> float:
    """Seconds between the clocks that are furthest apart. Collective."""
    distributed.gather(None)  # together from here, but for the time that this took
    clocks = distributed.gather(time.time())
    return max(clocks) - min(clocks)


def all_reduce_seconds(tensor: torch.Tensor, group: Any) -> float:
    """The median over repeats after a first one that does not count."""
    taken = []
    for _ in range(REPEATS + 1):
        distributed.gather(None)  # together from here
        start = time.perf_counter()
        dist.all_reduce(tensor, group=group)
        if tensor.is_cuda:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def shared(folder: Path) -> Examined:
    """Whether every rank reads in ``folder`` what rank zero writes there. Collective."""
    name, word = distributed.from_first((str(folder), secrets.token_hex(16)))
    file = Path(name) / f".largebatch-doctor-{word}"
    problem = None
    if distributed.is_first():
        try:
            write_text(file, word)
        except OSError as error:
            problem = error.strerror or str(error)
    problem = distributed.from_first(problem)
    reads = distributed.gather(problem is None and read_back(file, word))
    if distributed.is_first():
        with contextlib.suppress(OSError):
            file.unlink()
    unseen = [rank for rank, read in enumerate(reads) if not read] if problem is None else []
    return {"looked_at": name, "unseen_by_ranks": unseen, "problem": problem}


def read_back(file: Path, word: str) -> bool:
    until = time.monotonic() + FOLDER_SECONDS
    while True:
        with contextlib.suppress(OSError):
            if file.read_text() == word:
                return True
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
