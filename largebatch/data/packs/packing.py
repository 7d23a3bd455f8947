"""``largebatch data pack``: makes a pack (:mod:`largebatch.data.packs.pack`) of whatever images there are.

Worker processes make one file each, and a line in ``packing.jsonl`` says that it is whole: the same command after a
kill makes what is missing, and ends with the same bytes as one that nobody disturbed. ``pack.json`` is written last.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np

import largebatch
from largebatch.data import fork_server
from largebatch.data.packs import writing
from largebatch.data.packs.manifest import (
    FORMAT,
    MANIFEST,
    PROGRESS,
    VERSION,
    ImageFile,
    Origin,
    PackedSplitRecord,
    PackRecord,
    Promised,
    Smallest,
    read_facts,
    write_facts,
)  # fmt: skip
from largebatch.data.packs.origins import Origins, mean_bytes
from largebatch.data.packs.writing import PlannedFile, Work, WrittenFile, refusal
from largebatch.data.passed_over import is_hidden, told_of
from largebatch.data.processes import processors
from largebatch.errors import Lost, UserError
from largebatch.records.files import UNFINISHED, sha256_of, whole

FILE_BYTES = 2**30
LEAST_FILE_BYTES = 2**26  # of a small set, so that there are files for all processors to make
MOST_FILES = 256  # of a split: each is an open file in every process that reads

Say = Callable[[str], object]
Report = Callable[[int, int], object]


def pack(
    source: Origins,
    dest: Path,
    *,
    size: int | None,
    skip_unreadable: float = 0.0,
    workers: int | None = None,
    per_file: int | None = None,
    say: Say = lambda text: None,
    report: Report = lambda made, images: None,
) -> PackRecord | None:
    """Make the pack in ``dest``, or what is missing of it; None if all was there already.

    ``size``: pixels of this side; None: the encoded images. A share of ``skip_unreadable`` of the training images may
    fail to decode; they are left out and listed. ``per_file`` images go into a file (default: about 1 GiB). ``say``
    hears what was decided, ``report`` how many images are made. An interrupt leaves what is whole.
    """
    asked = {"form": "pixels" if size else "jpeg", "size": size, "source": source.fingerprint}
    if (dest / MANIFEST).is_file():
        facts = read_facts(dest)
        _check_same({"form": facts.form, "size": facts.size, "source": facts.source.sha256}, asked, source, dest)
        return None
    begun = _begun(dest)
    if begun is None:
        mean = mean_bytes(source.splits["train"], size, skip_unreadable > 0)
        each = mean if size is None else 3 * size * size
        begun = asked | {"per_file": {s: per_file or _per_file(len(of), each) for s, of in source.splits.items()}}
    _check_same(begun, asked, source, dest)
    jobs = _jobs(source, begun)
    at_most = dict.fromkeys(source.splits, 0) | {
        "train": math.floor(skip_unreadable * len(source.splits["train"]) + 1e-9)
    }
    try:
        dest.mkdir(parents=True, exist_ok=True)
        with PackingProgress(dest, begun) as progress:
            missing = [job for job in jobs if job.name not in progress.written]
            if size:
                _check_room(dest, 3 * size * size * _images(missing))
            count = min(workers or processors(), max(1, len(missing)))
            say(_decision(source, size, jobs, missing, count, dest))
            if told := told_of(source.splits):
                say(f"passed over {told}")
            try:
                _make(source, dest, size, at_most, missing, count, progress, lambda n: report(n, _images(jobs)))
                return _finished(source, dest, asked, jobs, progress)
            except (OSError, KeyboardInterrupt) as reason:
                state = f"{len(progress.written)} of {len(jobs)} files are whole, and the same command goes on"
                if isinstance(reason, KeyboardInterrupt):
                    raise KeyboardInterrupt(state) from None
                raise UserError(f"{dest} cannot be written: {reason.strerror or reason}; {state}") from None
    except OSError as reason:
        raise UserError(f"{dest} cannot be written: {reason.strerror or reason}") from None


class PackingProgress:
    """``packing.jsonl``: what is made, then a line for each file that is whole. One process at a time holds it."""

    def __init__(self, dest: Path, begun: dict[str, Any]) -> None:
        self.dest, self.path = dest, dest / PROGRESS
        self.written: dict[str, WrittenFile] = {}
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as reason:
            self._file.close()
            if isinstance(reason, BlockingIOError):
                raise UserError(f"another process is making a pack in {dest}") from None
            raise
        lines = _whole_lines(self.path)
        self._file.truncate(sum(map(len, lines)))  # what a kill has torn
        for line in lines[1:]:
            file = WrittenFile.model_validate_json(line)
            with contextlib.suppress(FileNotFoundError):
                if not file.examples or (dest / file.name).stat().st_size == file.bytes:
                    self.written[file.name] = file
        for left in dest.glob(f"*{UNFINISHED}"):
            left.unlink()
        if not lines:
            self._append(json.dumps(begun))

    def __enter__(self) -> PackingProgress:
        return self

    def __exit__(self, *problem: Any) -> None:
        self._file.close()

    def add(self, file: WrittenFile) -> None:
        if file.name not in self.written:
            self._append(file.model_dump_json())
            self.written[file.name] = file

    def _append(self, line: str) -> None:
        before = os.fstat(self._file.fileno()).st_size
        rest = line.encode() + b"\n"
        try:
            while rest:  # a disk that fills up takes a part, and refuses the next
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(before)
            raise


def _whole_lines(path: Path) -> list[bytes]:
    try:
        return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    except FileNotFoundError:
        return []


def _begun(dest: Path) -> dict[str, Any] | None:
    """What an earlier command began to make in ``dest``; refused where there is something else."""
    try:
        names = sorted(path.name for path in dest.iterdir() if not is_hidden(path.name))
    except FileNotFoundError:
        return None
    except OSError as reason:
        raise UserError(f"{dest} cannot be written: {reason.strerror}") from None
    if names and PROGRESS not in names:
        raise UserError(f"{dest} holds other files ({names[0]}); a pack needs a folder of its own")
    lines = _whole_lines(dest / PROGRESS)
    try:
        begun = json.loads(lines[0]) if lines else None
        sound = begun is None or set(begun) == {"form", "size", "source", "per_file"}
        for line in lines[1:]:
            WrittenFile.model_validate_json(line)
    except (ValueError, TypeError):
        sound = False
    if not sound:
        raise UserError(f"{dest / PROGRESS} is damaged; delete {dest} and pack again")
    return begun


def _check_same(begun: Mapping[str, Any], asked: Mapping[str, Any], source: Origins, dest: Path) -> None:
    if begun["source"] != asked["source"]:
        raise UserError(f"{dest} is a pack of other images than {source.given} holds; choose another folder")
    if (begun["form"], begun["size"]) != (asked["form"], asked["size"]):
        raise UserError(
            f"{dest} is a pack of {_form(begun['size'])}, not of {_form(asked['size'])}; choose another folder"
        )


def _form(size: int | None) -> str:
    return f"{size} × {size} pixels" if size else "encoded images"


def _check_room(dest: Path, needed: int) -> None:
    free = shutil.disk_usage(dest).free
    if needed > free:
        raise UserError(f"{dest} needs {needed / 1e6:,.1f} MB, and its disk has {free / 1e6:,.1f} MB left")


def _per_file(images: int, bytes_each: float) -> int:
    """Files of 1 GiB; smaller ones where that makes fewer than 64, larger ones where it makes too many."""
    file_bytes = min(FILE_BYTES, max(LEAST_FILE_BYTES, images * bytes_each / 64))
    return max(1, int(file_bytes / bytes_each), math.ceil(images / MOST_FILES))


def _jobs(source: Origins, begun: Mapping[str, Any]) -> list[PlannedFile]:
    suffix = "npy" if begun["form"] == "pixels" else "jpegs"
    jobs = []
    for split, images in source.splits.items():
        each = begun["per_file"][split]
        for number, first in enumerate(range(0, len(images), each)):
            jobs.append(PlannedFile(split, f"{split}-{number:05d}.{suffix}", first, min(first + each, len(images))))
    return jobs


def _images(jobs: list[PlannedFile]) -> int:
    return sum(job.last - job.first for job in jobs)


def _decision(
    source: Origins, size: int | None, jobs: list[PlannedFile], missing: list[PlannedFile], count: int, dest: Path
) -> str:
    images = " and ".join(f"{len(of):,} {split}" for split, of in source.splits.items())
    gigabytes = f", {3 * size * size * _images(jobs) / 1e9:,.2f} GB" if size else ""
    there = f" ({len(jobs) - len(missing)} are there)" if len(missing) < len(jobs) else ""
    return (
        f"{source.given} ({source.kind}): {images} images of {len(source.classes):,} classes -> {dest}: {_form(size)}"
        f"{gigabytes} in {len(jobs)} files{there}, {count} processes"
    )


def _make(
    source: Origins, dest: Path, size: int | None, at_most: dict[str, int], missing: list[PlannedFile], count: int,
    progress: PackingProgress, report: Callable[[int], object],
) -> None:  # fmt: skip
    """The files that are missing. However it ends, no worker is left and every whole file has its line."""
    context: Any = fork_server.running()
    counter, stop = context.Value("q", 0), context.Event()
    work = Work(source.splits, dest, size, at_most, counter, stop)
    before = sum(file.examples + len(file.left_out) for file in progress.written.values())
    with ProcessPoolExecutor(count, context, writing.begin, (work,)) as pool:
        futures: list[Future[WrittenFile]] = []
        try:
            futures += (pool.submit(writing.write, job) for job in missing)
            waiting = set(futures)
            while waiting:
                done, waiting = wait(waiting, 0.2, FIRST_COMPLETED)
                report(before + counter.value)
                for future in done:
                    progress.add(future.result())
                _check_left_out(source, at_most, progress)
        except BrokenProcessPool:
            raise Lost(
                f"one of {count} worker processes was killed, as the system does when memory is short; the same "
                f"command goes on, and fewer need less: --workers {max(1, count // 2)}"
            ) from None
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            for future in filter(_succeeded, futures):
                with contextlib.suppress(OSError):  # then it is made again
                    progress.add(future.result())
            raise


def _succeeded(future: Future[WrittenFile]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _check_left_out(source: Origins, at_most: dict[str, int], progress: PackingProgress) -> None:
    for split, bound in at_most.items():
        left_out = {
            i: why for file in progress.written.values() if file.split == split for i, why in file.left_out.items()
        }
        if len(left_out) > bound:
            last = max(left_out)
            raise UserError(refusal(source.splits[split].name(last), left_out[last], split, bound))


def _finished(
    source: Origins, dest: Path, asked: dict[str, Any], jobs: list[PlannedFile], progress: PackingProgress
) -> PackRecord:
    """Labels, names and index, then ``pack.json``; nothing is left of the progress."""
    facts = PackRecord(
        format=FORMAT,
        version=VERSION,
        form=asked["form"],
        size=asked["size"],
        classes=list(source.classes),
        splits={
            split: _split(source, dest, split, [progress.written[job.name] for job in jobs if job.split == split])
            for split in source.splits
        },  # type: ignore[arg-type]
        source=Origin(given=source.given, kind=source.kind, sha256=asked["source"]),
        largebatch=largebatch.__version__,
    )
    write_facts(dest, facts)
    progress.path.unlink()
    return facts


def _split(source: Origins, dest: Path, split: str, made: list[WrittenFile]) -> PackedSplitRecord:
    left_out = {index: why for file in made for index, why in file.left_out.items()}
    kept = np.ones(len(source.splits[split]), dtype=bool)
    kept[list(left_out)] = False
    made = [file for file in made if file.examples]
    if not made:
        raise UserError(f"{source.given}: no image of the {split} set can be read")
    first = np.cumsum([0, *(file.examples for file in made)]).tolist()
    index = None
    if made[0].lengths:
        rows = [
            np.stack([np.full(file.examples, number), np.cumsum([0, *file.lengths[:-1]]), file.lengths], axis=1)
            for number, file in enumerate(made)
        ]
        index = _array(dest / f"{split}-index.npy", np.concatenate(rows).astype(np.int64))
    name = lambda at: bytes(source.names[split][at]).decode(errors="replace")  # noqa: E731
    smallest, width, height = min((file.smallest for file in made if file.smallest), key=lambda s: (min(s[1:]), s[0]))
    return PackedSplitRecord(
        examples=first[-1],
        files=[
            ImageFile(name=file.name, bytes=file.bytes, sha256=file.sha256, first=begin, examples=file.examples)
            for file, begin in zip(made, first[:-1], strict=True)
        ],
        labels=_array(dest / f"{split}-labels.npy", source.splits[split].labels[kept].astype(np.int64)),
        names=_array(dest / f"{split}-names.npy", source.names[split][kept]),
        index=index,
        enlarged=sum(file.enlarged for file in made),
        smallest=Smallest(name=name(smallest), width=width, height=height),
        left_out={name(at): why for at, why in left_out.items()},
    )


def _array(path: Path, array: np.ndarray) -> Promised:
    with whole(path, on_disk=True) as unfinished, open(unfinished, "wb") as file:
        np.lib.format.write_array(file, array, allow_pickle=False)
    return Promised(name=path.name, bytes=path.stat().st_size, sha256=sha256_of(path))
