"""Writing checkpoints beside the training.

    the loop     copies what this rank holds into memory of its own, and goes on
    a thread     is every number finite? -> this rank's file, flushed to the disk, its SHA-256
                 -> rank zero: what all ranks wrote, the manifest, the folder gets its name, old ones go

The copy needs no communication. The threads of the ranks speak over a gloo group of their own, so that they never meet
the loop's collectives. What is acknowledged is on the disk; what could not be written is told and harms nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from largebatch.checkpoint import manifest, tree
from largebatch.checkpoint.pieces import Pieces, State
from largebatch.checkpoint.retention import Retention, Saved, staying
from largebatch.errors import Lost
from largebatch.machine import distributed, watchdog
from largebatch.plan.score import score_of
from largebatch.records.files import flush, sha256_of

PATIENCE = 60  # seconds
ALONG = 1 << 20  # bytes: what a rank keeps to itself travels to rank zero up to here, and has a file of its own beyond


class Outcome(NamedTuple):
    """How a save ended; the same on every rank."""

    step: int
    path: Path | None  # None: it is not there, and ``problem`` says why
    problem: str | None
    finite: bool
    bytes: int
    seconds: float  # from the copy to the acknowledgement, on rank zero


class Copy(NamedTuple):
    """What a rank is to write, in memory that the training does not touch."""

    in_file: dict[str, Tensor]
    along: dict[str, Tensor]
    shared_tree: Any
    own_tree: Any
    ready: Any  # a CUDA event, or None
    device: int  # of it


class Writer:
    """Saves into ``directory``; one save at a time. Made, used and closed by all ranks alike."""

    def __init__(self, directory: Path, keep: Retention, asynchronous: bool = True) -> None:
        self.directory, self.keep, self.asynchronous = directory, keep, asynchronous
        self._group = distributed.separate_group()
        self._staging: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._outcome: Outcome | None = None
        self._cut_off: str | None = None  # from the other ranks, and why

    def save(self, step: int, facts: dict[str, Any], shared: State, of_rank: State) -> None:
        """Begin to save; returns when everything is copied.

        ``shared`` is the same on every rank but for its :class:`~pieces.Pieces`, ``of_rank`` is this rank's.
        A save in progress is waited for first, its outcome kept for :meth:`take`.
        """
        self._wait()
        copy = self.copied(shared, of_rank)
        self._thread = threading.Thread(
            target=self._write, args=(step, facts, copy, time.perf_counter()), name="checkpoint", daemon=True
        )
        self._thread.start()
        if not self.asynchronous:
            self._wait()

    def _wait(self) -> None:
        """Of a slow disk the watchdog is no judge."""
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(1.0)
            watchdog.alive()

    def done(self) -> bool:
        return self._outcome is not None and not (self._thread and self._thread.is_alive())

    def take(self) -> Outcome | None:
        """The outcome of the save in progress or of the last one, once; waits for it.

        Raises Lost where the threads of the ranks cannot speak to one another any more.
        """
        self._wait()
        self._thread = None
        if self._cut_off:
            raise Lost(f"rank {distributed.rank()} cannot save together with the others: {self._cut_off}")
        outcome, self._outcome = self._outcome, None
        return outcome

    def close(self) -> None:
        """Wait for a save in progress, unless the ranks that it waits for are gone."""
        if self._thread is not None:
            self._thread.join(PATIENCE)
        if self._thread is None or not self._thread.is_alive():
            distributed.leave(self._group)

    def copied(self, shared: State, of_rank: State) -> Copy:
        of_all: tree.Tensors = {}
        mine: tree.Tensors = {}
        shared_tree = tree.flatten(shared, "state", of_all)
        own_tree = tree.flatten(of_rank, f"ranks/{distributed.rank()}", mine)
        wanted: dict[str, Tensor] = {}
        for name, tensor in of_all.items():
            if isinstance(tensor, Pieces):
                wanted |= {f"{name}@{piece.start}": piece.values for piece in tensor.local}
            elif distributed.is_first():
                wanted[name] = tensor
        whole = {name: tensor for name, tensor in mine.items() if isinstance(tensor, Tensor)}
        along = whole if sum(tensor.nbytes for tensor in whole.values()) <= ALONG else {}
        in_file = wanted if along else {**wanted, **whole}
        staged = self._staged({**in_file, **along})
        event = None
        if any(tensor.is_cuda for tensor in (*in_file.values(), *along.values())):
            event = torch.cuda.Event()
            event.record()
        device = torch.cuda.current_device() if event is not None else 0
        mine_in_file, sent = ({name: staged[name] for name in names} for names in (in_file, along))
        return Copy(mine_in_file, sent, shared_tree, own_tree, event, device)

    @torch.no_grad()
    def _staged(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copies on the host, in the memory of the save before where it fits; pinned, so that CUDA need not wait.

        They lie in memory as the tensors do: to lay them out otherwise takes longer than to copy them.
        """
        before, self._staging = self._staging, {}
        for name, tensor in tensors.items():
            kept = before.get(name)
            if kept is None or kept.dtype != tensor.dtype or layout_of(kept) != layout_of(tensor):
                kept = torch.empty_like(tensor, device="cpu")
                if tensor.is_cuda:
                    with contextlib.suppress(RuntimeError):  # no memory to pin: the copy takes longer
                        kept = kept.pin_memory()
            self._staging[name] = kept.copy_(tensor.detach(), non_blocking=True)
        return self._staging

    def _write(self, step: int, facts: dict[str, Any], copy: Copy, begun: float) -> None:
        """The thread: never raises, and leaves an outcome, the same on every rank."""
        outcome = None
        try:
            problem, finite, files = self._own_part(step, copy)
            found = distributed.gather_to_first((problem, finite, files, copy.own_tree, copy.along), self._group)
            if distributed.is_first():
                outcome = self._committed(step, facts, copy.shared_tree, found, begun)
            outcome = distributed.from_first(outcome, self._group)
        except Exception as error:  # a rank is gone, say
            self._cut_off = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            outcome = Outcome(step, None, self._cut_off, True, 0, time.perf_counter() - begun)
        self._outcome = outcome

    def _own_part(self, step: int, copy: Copy) -> tuple[str | None, bool, dict[str, Any]]:
        """(What went wrong, whether all numbers are finite, this rank's file.) Whatever goes wrong: others wait."""
        folder = unfinished(self.directory, step)
        try:
            if copy.ready is not None:
                torch.cuda.set_device(copy.device)  # a thread begins on the first one
                copy.ready.synchronize()
            if ruined := not_finite(copy):
                return f"{ruined} is not finite", False, {}
            if not copy.in_file:
                return None, True, {}
            folder.mkdir(parents=True, exist_ok=True)
            return None, True, write_tensors(folder / f"rank-{distributed.rank():05d}.safetensors", copy.in_file)
        except Exception as error:
            return f"{folder.with_suffix('')}: {why_not_written(error)}", True, {}

    def _committed(self, step: int, facts: dict[str, Any], shared_tree: Any, parts: list[Any], begun: float) -> Outcome:
        """Rank zero: the checkpoint gets its name if every rank has written its part."""
        problems = [problem for problem, *_ in parts if problem]
        finite = all(is_finite for _, is_finite, *_ in parts)
        folder, path = unfinished(self.directory, step), manifest.path_of(self.directory, step)
        size = 0
        if not problems:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                files = {name: about for _, _, own, *_ in parts for name, about in own.items()}
                along = {name: tensor for *_, tensors in parts for name, tensor in tensors.items()}
                if along:
                    files |= write_tensors(folder / "ranks.safetensors", along)
                size = sum(about["bytes"] for about in files.values())
                whole = {"state": shared_tree, "ranks": [own_tree for _, _, _, own_tree, _ in parts]}
                manifest.write(folder, {"step": step, **facts, "files": files, "tree": whole})
                take_name(folder, path)
            except Exception as error:
                problems.append(f"{path}: {why_not_written(error)}")
        if problems:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            with contextlib.suppress(Exception):  # the new one is there all the same
                remove_old(self.directory, self.keep, just_written=step)
        took = time.perf_counter() - begun
        return Outcome(step, None if problems else path, problems[0] if problems else None, finite, size, took)


def not_finite(copy: Copy) -> str | None:
    """The name of a tensor with a number that is none."""
    for name, tensor in (*copy.in_file.items(), *copy.along.items()):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return name.partition("@")[0]
    return None


def layout_of(tensor: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(tensor.shape), tensor.stride()


def unfinished(directory: Path, step: int) -> Path:
    path = manifest.path_of(directory, step)
    return path.with_name(path.name + manifest.UNFINISHED)


def save_tensors(file: Path, tensors: dict[str, Tensor], about: dict[str, str] | None = None) -> None:
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, about)
    file.chmod(0o644)  # the library leaves it to its owner alone


def write_tensors(file: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """On the disk; ``{file's name: size and checksum}``."""
    save_tensors(file, tensors)
    flush(file)
    return {file.name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)}}


def take_name(folder: Path, path: Path) -> None:
    flush(folder)
    aside = None
    if path.exists():  # of a save at the same step, damaged perhaps
        aside = put_aside(path)
    os.replace(folder, path)
    flush(path.parent)
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)
    flush(path.parent.parent)  # the first one's folder of checkpoints is new, too


def remove(path: Path) -> None:
    """Out of sight first, so that nobody finds half of it."""
    shutil.rmtree(put_aside(path), ignore_errors=True)


def put_aside(path: Path) -> Path:
    aside = path.with_name(path.name + manifest.REMOVED)
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(path, aside)
    return aside


def remove_old(directory: Path, keep: Retention, just_written: int) -> None:
    """By the policy; a damaged checkpoint is nobody's last, and is left for whoever wants to look at it."""
    known = {}
    for path in manifest.existing(directory):
        with contextlib.suppress(manifest.Damaged, KeyError, TypeError):
            facts = manifest.read(path)
            score = score_of(facts)
            reached = facts.get(score.key)
            known[path] = Saved(facts["step"], facts["epoch"], None if reached is None else score.worth(reached))
    older = [saved for saved in known.values() if saved.step <= just_written]
    stay = staying(older, keep)
    for path, saved in known.items():
        if saved in older and saved.step not in stay:
            remove(path)


def clear_up(directory: Path) -> None:
    """What a save or removal that was cut off has left: finished if it is whole, else removed."""
    for path in manifest.left_over(directory):
        final = path.with_suffix("")
        try:
            if path.suffix != manifest.UNFINISHED or final.exists():
                raise manifest.Damaged
            for name, promised in manifest.read(path)["files"].items():
                manifest.check_file(path, name, promised)
            take_name(path, final)
        except manifest.Damaged:
            shutil.rmtree(path, ignore_errors=True)


def why_not_written(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if "StorageFull" in str(error) or f"os error {errno.ENOSPC}" in str(error):
        return os.strerror(errno.ENOSPC)
    words = str(error).splitlines()[0][:200] if str(error) else ""
    return words if isinstance(error, safetensors.SafetensorError) else f"{type(error).__name__}: {words}"
