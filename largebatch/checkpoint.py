"""Checkpoints: atomic, exact to the example, read without running code.

``RUN/checkpoints/step-00000120.pt`` holds the engine's state, the random states of every rank and the number of
steps done. It is written beside its final name, flushed to disk, and renamed: a file of that name is whole. Rank
zero writes; every rank reads. Reading checks the CRC-32 of every record, then uses torch's restricted unpickler,
which builds tensors and plain containers only.
"""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from largebatch import distributed
from largebatch.errors import UserError

FORMAT = 3
NAME = re.compile(r"step-\d{8,}\.pt")
READING = (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError, zipfile.BadZipFile)


def path_of(directory: Path, step: int) -> Path:
    return directory / f"step-{step:08d}.pt"


def step_of(path: Path) -> int:
    return int(path.stem.partition("-")[2])


def existing(directory: Path) -> list[Path]:
    """Newest first; a file of another name is somebody's own."""
    return sorted((path for path in directory.glob("step-*.pt") if NAME.fullmatch(path.name)), reverse=True)


def save(directory: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Collective: ``state`` is this rank's; the random states of all ranks are gathered into it."""
    path = path_of(directory, step)
    everything = {**state, "format": FORMAT, "step": step, "random": distributed.gather(random_state())}
    problem = None
    if distributed.is_first():
        try:
            write_atomically(path, everything)
            for old in existing(directory)[keep:]:
                old.unlink()
        except (OSError, RuntimeError) as error:  # torch.save tells a full disk as a RuntimeError
            reason = (getattr(error, "strerror", None) or str(error)).splitlines()[0]
            problem = f"cannot write the checkpoint {path}: {reason}"
    problem = distributed.gather(problem)[0]
    if problem:
        raise UserError(problem)
    return path


def write_atomically(path: Path, state: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    try:
        with open(unfinished, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Loaded(NamedTuple):
    path: Path
    state: dict[str, Any]
    complaints: list[str]  # a sentence for each newer checkpoint that could not be read


ANEW = "remove the folder to start anew, or choose another record.dir"


def load_newest(directory: Path, step: int | None = None, otherwise: str = ANEW) -> Loaded | None:
    """The newest readable checkpoint, or that of ``step``, the same on every rank.

    Collective: refused where ranks see different files. ``otherwise``: what to do where none can be read.
    """
    found: Loaded | None = None
    problem = None
    try:
        found = _load_newest(existing(directory) if step is None else [path_of(directory, step)], otherwise)
    except UserError as error:
        problem = str(error)
    seen = distributed.gather((found.path.name if found else None, problem))
    for _, one in seen:
        if one:
            raise UserError(one)
    names = {name for name, _ in seen}
    if len(names) > 1:
        raise UserError(
            f"the ranks read different checkpoints in {directory} ({', '.join(sorted(str(name) for name in names))}); "
            "record.dir must be one folder that every rank sees"
        )
    return found


def _load_newest(paths: list[Path], otherwise: str) -> Loaded | None:
    complaints: list[str] = []
    for path in paths:
        try:
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise OSError(f"the checksum of {damaged} does not fit")
            state = torch.load(path, map_location="cpu", weights_only=True)
            if state["format"] != FORMAT:
                raise UserError(f"checkpoint {path} has format {state['format']}, this version reads {FORMAT}")
            return Loaded(path, state, complaints)
        except READING as error:
            reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
            complaints.append(f"checkpoint {path.name} cannot be read ({reason}); the one before it is used")
    if len(paths) == 1 and complaints:
        raise UserError(f"the checkpoint {paths[0]} cannot be read; {otherwise}")
    if complaints:
        raise UserError(f"no checkpoint in {paths[0].parent} can be read; {otherwise}")
    return None


def random_state() -> dict[str, Any]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random(state: dict[str, Any], seed: int) -> None:
    """This rank's random state in the same world; in another world a fresh one keyed by (seed, step, rank)."""
    states = state["random"]
    if len(states) == distributed.world_size():
        own = states[distributed.rank()]
        torch.set_rng_state(own["cpu"])
        if "cuda" in own and torch.cuda.is_available():
            torch.cuda.set_rng_state(own["cuda"])
    else:
        seed_rank(seed, state["step"])


def seed_rank(seed: int, step: int = 0) -> None:
    """Seed what only dropout and the like draw from: it differs between ranks, data and weights do not use it."""
    mixed = (seed * 1_000_003 + step) * 65_537 + distributed.rank() + 1
    torch.manual_seed(mixed % 2**63)
