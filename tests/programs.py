"""The program as a user starts it: in a process of its own, alone or on several ranks; and what it leaves."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pool
import torch
from beside import beside
from pool import LAUNCHER, REPOSITORY, environment

from largebatch import checkpoint
from largebatch.checkpoint import manifest
from largebatch.checkpoint.pieces import Pieces, whole
from largebatch.engines.states import whole_model

__all__ = ["LAUNCHER", "REPOSITORY", "environment"]  # of pool.py, for who has to do with programs


def largebatch(*arguments: object, cwd: Path | None = None, **more: str) -> pool.Ended:
    """The program in a process of its own."""
    return pool.run("-m", "largebatch", *arguments, cwd=cwd, env=environment(**more))


def torchrun(ranks: int, *arguments: object, cwd: Path | None = None) -> pool.Ended:
    """What ``torchrun --nproc-per-node RANKS ARGUMENTS`` starts, without torchrun's own report of failures."""
    return pool.ranks(ranks, *arguments, cwd=cwd)


def saved(directory: Path) -> list[Path]:
    """The checkpoints of a run directory, oldest first."""
    return checkpoint.existing(directory / "checkpoints")[::-1]


def state_at_end(directory: Path) -> dict[str, Any]:
    """What the newest checkpoint of a run directory holds, tensors whole."""
    newest = saved(directory)[-1]
    return joined(checkpoint.state_of(newest, manifest.read(newest)))


def joined(tree: Any) -> Any:
    """A state as it is read, its pieces put together."""
    match tree:
        case Pieces():
            return whole(tree)
        case dict():
            return {key: joined(below) for key, below in tree.items()}
        case list() | tuple():
            return type(tree)(map(joined, tree))
    return tree


def weights_at_end(directory: Path) -> dict[str, torch.Tensor]:
    """The model as it would be judged: running statistics averaged over ranks."""
    return whole_model(state_at_end(directory))


def damage(path: Path, at: float = 0.5) -> None:
    """One bit of the checkpoint's largest file is another."""
    file = max(path.glob("*.safetensors"), key=lambda file: file.stat().st_size)
    content = bytearray(file.read_bytes())
    content[int(at * (len(content) - 1))] ^= 1
    file.write_bytes(content)


class Killed(BaseException):
    """Stands for SIGKILL: nothing gets a chance to clean up."""


@contextlib.contextmanager
def killed_at(step: int) -> Iterator[None]:
    """Inside, a run in this process dies when it has done so many steps: Killed comes out."""

    def dies(job: Any, here: Any) -> None:
        if here.number == step:
            raise Killed

    with beside(before=dies):
        yield


def wait_for_first_line(process: pool.Program, file: Path) -> None:
    """Until the program has recorded something, so that it is known to be in its loop."""
    while process.poll() is None and not (file.exists() and file.read_text()):
        time.sleep(0.005)
    assert process.poll() is None, "the program ended before it recorded anything"
