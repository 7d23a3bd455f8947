"""``largebatch data pack``: makes a pack (:mod:`largebatch.data.packs.pack`) of whatever images there are.

Worker processes make one file each, and a line in ``packing.jsonl`` says that it is whole: the same command after a
kill makes what is missing, and ends with the same bytes as one that nobody disturbed. ``pack.json`` is written last.
"""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import largebatch
from largebatch.data.packs import making, writing
from largebatch.data.packs.manifest import (
    FORMAT,
    MANIFEST,
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
from largebatch.data.packs.progress import MakingProgress, begun_in
from largebatch.data.packs.writing import PlannedFile, Work, WrittenFile, refusal
from largebatch.data.passed_over import told_of
from largebatch.data.processes import in_words as processes_in_words
from largebatch.data.processes import processors
from largebatch.errors import UserError
from largebatch.records.files import sha256_of, whole

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
    begun = begun_in(dest, dest, {"form", "size", "source", "per_file"}, WrittenFile)
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
        with MakingProgress(dest, begun, WrittenFile) as progress:
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
        f"{gigabytes} in {len(jobs)} files{there}, {processes_in_words(count)}"
    )


def _make(
    source: Origins, dest: Path, size: int | None, at_most: dict[str, int], missing: list[PlannedFile], count: int,
    progress: MakingProgress[WrittenFile], report: Callable[[int], object],
) -> None:  # fmt: skip
    """The files that are missing."""
    before = sum(file.examples + len(file.left_out) for file in progress.written.values())
    making.make(
        missing, writing.write, writing.begin, functools.partial(Work, source.splits, dest, size, at_most), count,
        progress, lambda made: report(before + made), lambda: _check_left_out(source, at_most, progress),
    )  # fmt: skip


def _check_left_out(source: Origins, at_most: dict[str, int], progress: MakingProgress[WrittenFile]) -> None:
    for split, bound in at_most.items():
        left_out = {
            i: why for file in progress.written.values() if file.split == split for i, why in file.left_out.items()
        }
        if len(left_out) > bound:
            last = max(left_out)
            raise UserError(refusal(source.splits[split].name(last), left_out[last], split, bound))


def _finished(
    source: Origins, dest: Path, asked: dict[str, Any], jobs: list[PlannedFile], progress: MakingProgress[WrittenFile]
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
