"""Reading checkpoints: the newest that is what it was when it was written, the same on every rank.

Nothing in a checkpoint is run: the manifest is JSON, tensors are safetensors, checked by size and SHA-256 first. The
files of a checkpoint are shared among the ranks for checking. Then every rank maps all of them and looks at what they
say of their tensors; the content is read where it is taken, by the range (:mod:`largebatch.checkpoint.pieces`), so the
ranks of a host share what they read, and none makes a tensor that it does not keep. What a file says of itself is not
believed before it is compared: no tensor is made whose pieces are not there.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from torch import Tensor

from largebatch.checkpoint import manifest, tree
from largebatch.checkpoint.pieces import Piece, Pieces, State
from largebatch.errors import UserError
from largebatch.machine import distributed, watchdog

PATIENCE = 40  # seconds
SMALL = 4096  # elements: copied out of the file, so that counters and the like do not keep it open


class Loaded(NamedTuple):
    path: Path
    facts: dict[str, Any]  # the manifest
    state: State  # its tensors lie in the mapped files; "ranks" holds what each rank kept to itself
    complaints: list[str]  # a sentence for each newer checkpoint that could not be read


ANEW = "remove the folder to start anew, or choose another record.dir"


def load_newest(directory: Path, step: int | None = None, otherwise: str = ANEW) -> Loaded | None:
    """The newest checkpoint that can be read, or that of ``step``. Collective.

    Refused where ranks see different folders. ``otherwise``: what to do where none can be read.
    """
    paths = _listed(directory) if step is None else [manifest.path_of(directory, step)]
    if not paths and any(directory.glob("step-*.pt")):
        raise UserError(
            f"{directory} holds checkpoints of an earlier version, which this one does not read; {otherwise}"
        )
    complaints: list[str] = []
    for path in paths:
        facts, problem = _looked_at(path, distributed.rank(), distributed.world_size())
        problems = [one for one in distributed.gather(problem) if one]
        if facts is not None and not problems:
            state, problem = _read(path, facts)
            problems = [one for one in distributed.gather(problem) if one]
            if state is not None and not problems:
                return Loaded(path, facts, state, complaints)
        complaints.append(f"checkpoint {path.name} cannot be read ({problems[0]}); the one before it is used")
    if len(paths) == 1:
        raise UserError(f"the checkpoint {paths[0]} cannot be read: {problems[0]}; {otherwise}")  # pyright: ignore[reportPossiblyUnbound]
    if paths:
        raise UserError(f"no checkpoint in {directory} can be read; {otherwise}")
    return None


def _listed(directory: Path) -> list[Path]:
    """The checkpoints, newest first. A network file system may show another host an old list for a while."""
    for again in range(PATIENCE, -1, -1):
        paths = manifest.existing(directory)
        if len({str(names) for names in distributed.gather([path.name for path in paths])}) == 1:
            break
        if not again:
            raise UserError(
                f"the ranks see different checkpoints in {directory}; record.dir must be one folder that all ranks see"
            )
        time.sleep(1)
        watchdog.alive()
    return paths


def _looked_at(path: Path, rank: int, ranks: int) -> tuple[dict[str, Any] | None, str | None]:
    """The manifest, and what is wrong with it or with this rank's share of the files."""
    try:
        facts = checked(path, rank, ranks)
        return facts, None
    except manifest.Damaged as error:
        return None, str(error)


def checked(path: Path, rank: int = 0, ranks: int = 1) -> dict[str, Any]:
    """The manifest, once every ``ranks``-th file from ``rank`` on is found to be what it says; else Damaged."""
    facts = manifest.read(path)
    if facts["step"] != manifest.step_of(path):
        raise manifest.Damaged(f"it is that of step {facts['step']}")
    for name in sorted(facts["files"])[rank::ranks]:
        manifest.check_file(path, name, facts["files"][name])
    return facts


def _read(path: Path, facts: dict[str, Any]) -> tuple[dict[str, Any] | None, str | None]:
    try:
        return state_of(path, facts), None
    except manifest.Damaged as error:
        return None, str(error)


def state_of(path: Path, facts: dict[str, Any]) -> State:
    """Everything in the checkpoint, on the CPU, as it was saved: a tensor, or all of its pieces.

    Damaged where it is not what the writer makes. The files stay mapped for as long as something of them is in use.
    """
    try:
        with Tensors(path, facts["files"]) as tensors:
            found = tree.restore(facts["tree"], tensors.stored)
        return {**found["state"], "ranks": found["ranks"]}
    except OSError as error:
        raise manifest.Damaged(error.strerror or str(error)) from None
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise manifest.Damaged(f"its content is none that was saved: {error}".splitlines()[0]) from None


class Tensors:
    """The tensors of a checkpoint's files: views of the mapped content, of which nothing is read yet."""

    def __init__(self, path: Path, files: dict[str, Any]) -> None:
        self.files = {name: safetensors.safe_open(path / name, framework="pt") for name in sorted(files)}
        self.places: dict[str, list[tuple[str, str]]] = {}  # name of the tensor -> file and key of its pieces
        for name, file in self.files.items():
            for key in file.keys():  # noqa: SIM118  # a method of safetensors, no mapping
                self.places.setdefault(key.rpartition("@")[0] or key, []).append((name, key))

    def stored(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | Pieces:
        places = self.places.get(name, [])
        if [key for _, key in places] == [name]:
            [(file, key)] = places
            tensor = self.files[file].get_tensor(key)
            if (tuple(tensor.shape), tensor.dtype) != (shape, dtype):
                raise manifest.Damaged(f"{name} is of another shape or type")
            return tensor.clone() if tensor.numel() <= SMALL else tensor
        end, pieces = 0, list[Piece]()
        for start, file, key in sorted((start_of(key), file, key) for file, key in places):
            values = self.files[file].get_tensor(key).reshape(-1)
            if start != end or values.dtype != dtype:
                raise manifest.Damaged(f"the pieces of {name} do not fit together")
            end += len(values)
            pieces.append(Piece(start, values))
        if end != math.prod(shape):
            raise manifest.Damaged(f"{name} is not whole")
        return Pieces(shape, dtype, tuple(pieces))

    def __enter__(self) -> Tensors:
        for file in self.files.values():
            file.__enter__()
        return self

    def __exit__(self, *problem: Any) -> None:
        for file in self.files.values():
            file.__exit__(*problem)


def start_of(key: str) -> int:
    """Where in its tensor a piece begins, by its name."""
    digits = key.rpartition("@")[2]
    if not (digits.isascii() and digits.isdecimal()):
        raise manifest.Damaged(f"{key} names no place in a tensor")
    return int(digits)
