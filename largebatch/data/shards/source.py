"""WebDataset's shards: tar files of images and their classes, in a local folder or at any address that fsspec knows.

    imagenet/train-000000.tar ...  imagenet/val-000000.tar ...        or  imagenet/train/*.tar  imagenet/val/*.tar

Local shards are read in place, any image at any time, so an epoch is the plan's own permutation of all examples.

Shards in an object store come to this host whole (:mod:`largebatch.data.shards.cache`), so the examples of an epoch are
ordered for it: the shards are permuted, and all examples of ``shuffle_shards`` consecutive ones are permuted together.
The order is a function of seed and epoch alone. What holds for any source holds here: every example once in an epoch,
the same examples in the same steps at any world size, with any number of workers and after a resume. What does not
hold: examples of two shards meet in a batch only where both are in one block, so an epoch is mixed less than by a
permutation of everything. Every host fetches every shard once in an epoch, but none that its cache still holds.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import fsspec
import numpy as np
from fsspec.registry import known_implementations

from largebatch.data import places
from largebatch.data.contents import SHARDS, Listing
from largebatch.data.passed_over import is_hidden
from largebatch.data.shards.cache import Ahead, Handle, Shard, ShardCache, Unreachable, shard_cache, words
from largebatch.data.shards.index import Index, kept_index
from largebatch.errors import LocalError, UserError
from largebatch.recipes import paths

SHUFFLE_SHARDS = 16
_SPLITS = {"train": ("train",), "test": ("val", "test")}  # the best first
_FILE = re.compile(r"(?:.*?[^a-z])??(train|val|test).*\.tar", re.IGNORECASE)  # imagenet1k-train-0000.tar too
_FOLDER = re.compile(r"(train|val|test)[a-z]*", re.IGNORECASE)
_LOOKED_FOR = {"train": "train*.tar or train/*.tar", "test": "val*.tar, test*.tar, val/*.tar or test/*.tar"}
_LOCAL_HANDLES = 256
_REQUESTS = 8  # shards that are fetched together for the index
_VERSIONS = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "mtime", "updated", "created")


class _Order(NamedTuple):
    """Examples in the order in which they are read, and which shards its blocks are made of."""

    examples: np.ndarray
    ends: np.ndarray  # of each block, in ``examples``
    blocks: list[np.ndarray]


class _Process:
    """What the process that reads keeps; it does not cross to another, which begins with nothing."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.handles: dict[int, Handle] = {}  # the one used last is the last
        self.orders: dict[tuple[int, int] | None, _Order] = {}
        self.ahead: Ahead | None = None
        self.reached: tuple | None = None

    def __reduce__(self) -> tuple:
        return _Process, ()


@dataclass(frozen=True, eq=False)
class ShardedImages:
    """A :class:`largebatch.data.sources.ImageSource`. With a ``cache`` its shards are in an object store."""

    classes: tuple[str, ...]
    shards: tuple[Shard, ...]
    index: Index
    cache: ShardCache | None = None
    shuffle_shards: int = SHUFFLE_SHARDS
    passed_over: str = ""
    _process: _Process = field(default_factory=_Process, repr=False)

    @property
    def labels(self) -> np.ndarray:
        return self.index.label

    @property
    def remote(self) -> bool:
        return self.cache is not None

    def __len__(self) -> int:
        return len(self.index.label)

    def name(self, index: int) -> str:
        return f"{self.shards[self.index.shard[index]].address}: {os.fsdecode(self.index.name[index])}"

    def read(self, index: int) -> bytes:
        handle = self._handle(int(self.index.shard[index]))
        length = int(self.index.length[index])
        found = handle.read(int(self.index.offset[index]), length)
        if len(found) != length:
            raise OSError(errno.ESTALE, "the shard was made shorter while it was read")
        return found

    def listing(self) -> Listing:
        """Names as in a pack of these shards: the shard's file and the member."""
        files = [os.fsencode(shard.address.rpartition("/")[2]) + b": " for shard in self.shards]
        pairs = zip(self.index.shard.tolist(), self.index.name.tolist(), strict=True)
        names = np.array([files[shard] + member for shard, member in pairs], np.bytes_)
        return Listing(self.classes, self.labels, SHARDS, names, self.index.length)

    def part(self, chosen: np.ndarray) -> ShardedImages:
        return replace(self, index=self.index.part(chosen), _process=_Process())

    def epoch_order(self, seed: int, epoch: int) -> np.ndarray:
        """The order of the examples of an epoch where the shards are in an object store."""
        return self._order(seed, epoch).examples

    def ahead(self, position: int, seed: int | None = None) -> None:
        """Reading has come to ``position``: the rest of its block and the next are fetched by threads.

        A position in the stream of epochs of ``seed``; without a seed in the order in which the examples lie. It costs
        next to nothing within a block, and for local shards.
        """
        if self.cache is None:
            return
        epoch, place = divmod(position, len(self))
        here = self._order(seed, epoch)
        block = int(np.searchsorted(here.ends, place, side="right"))
        if self._process.reached == (seed, epoch, block):
            return
        self._process.reached = (seed, epoch, block)
        wanted = list(here.blocks[block])
        if block + 1 < len(here.blocks):
            wanted += list(here.blocks[block + 1])
        elif seed is not None:
            wanted += list(self._order(seed, epoch + 1).blocks[0])
        wanted = [self.shards[shard] for shard in dict.fromkeys(wanted)]
        fitting = np.cumsum([shard.size for shard in wanted]) <= self.cache.at_most  # else the next drives out this one
        if self._process.ahead is None:
            self._process.ahead = Ahead(self.cache)
        self._process.ahead.want([shard for shard, fits in zip(wanted, fitting, strict=True) if fits])

    def end_ahead(self) -> None:
        """Nobody reads any more, and nothing else is fetched."""
        if self._process.ahead is not None:
            self._process.ahead.end()
        self._process.ahead = self._process.reached = None

    def _order(self, seed: int | None, epoch: int) -> _Order:
        orders, key = self._process.orders, None if seed is None else (seed, epoch)
        found = orders.get(key)
        if found is None:
            found = self._in_order() if seed is None else self._shuffled(seed, epoch)
            with self._process.lock:
                orders[key] = found
                for old in list(orders)[:-3]:
                    del orders[old]
        return found

    def _in_order(self) -> _Order:
        """Each shard a block."""
        ends = np.append(np.flatnonzero(np.diff(self.index.shard)) + 1, len(self))
        return _Order(np.arange(len(self)), ends, [self.index.shard[end - 1 : end] for end in ends])

    def _shuffled(self, seed: int, epoch: int) -> _Order:
        rng = np.random.Generator(np.random.PCG64([seed, epoch]))
        by_shard = np.argsort(self.index.shard, kind="stable")
        present, starts = np.unique(self.index.shard[by_shard], return_index=True)
        of_shard = dict(zip(present.tolist(), np.split(by_shard, starts[1:]), strict=True))
        order = rng.permutation(present)
        blocks = [order[start : start + self.shuffle_shards] for start in range(0, len(order), self.shuffle_shards)]
        mixed = [rng.permutation(np.concatenate([of_shard[shard] for shard in block.tolist()])) for block in blocks]
        examples = np.concatenate(mixed)
        examples.setflags(write=False)
        return _Order(examples, np.cumsum([len(block) for block in mixed]), blocks)

    def _handle(self, shard: int) -> Handle:
        with self._process.lock:
            handles = self._process.handles
            handle = handles.pop(shard, None)
            if handle is not None:
                handles[shard] = handle
                return handle
        handle = _open(self.shards[shard], self.cache)
        at_most = _LOCAL_HANDLES if self.cache is None else self.shuffle_shards + 1  # an old block's make room
        with self._process.lock:
            handles[shard] = handle
            for old in list(handles)[:-at_most]:
                del handles[old]
        return handle


def is_shards(root: str) -> bool:
    """Whether ``root`` is an address, or a local folder with shards to train on and no image folder."""
    folder = _local(root)
    if folder is None:
        return True
    try:
        return "train" in _found(root) and not any(path.is_dir() for path in folder.glob("train/*"))
    except UserError:
        return False


def files_of(root: str) -> list[str]:
    """The names of the shards of all splits."""
    return [shard.address.rpartition("/")[2] for split in _found(root).values() for shard in split]


def open_shards(
    root: str,
    cache: Path | None = None,
    report: Callable[[str], object] | None = None,
    shuffle_shards: int = SHUFFLE_SHARDS,
    splits: Sequence[str] | None = ("train", "test"),
) -> dict[str, ShardedImages]:
    """The ``splits`` (None: those that are there), with one set of classes. ``cache`` keeps the index and what is
    fetched."""
    there, found = _found(root), {}
    for split in ("train", *(there.keys() - {"train"})) if splits is None else splits:
        if split not in there:
            raise UserError(f"{root} holds no shards to {split} on; {_LOOKED_FOR[split]} are looked for there")
        found[split] = there[split]
    folder = cache or places.cache_folder() / "shards"
    store, at_once = None, 1
    if _local(root) is None:
        store = shard_cache(folder / "fetched")
        _check_room(store, found, shuffle_shards)
        largest = max(1, *(shard.size for split in found.values() for shard in split))
        at_once = max(1, min(_REQUESTS, store.at_most // largest))

    def opened(shard: Shard) -> Handle:
        try:
            return _open(shard, store)
        except Unreachable:
            raise
        except OSError as reason:
            raise UserError(f"{shard.address} cannot be read: {words(reason)}") from None

    index = kept_index(found, opened, folder, report or (lambda _: None), at_once)
    return {
        split: ShardedImages(
            index.classes, found[split], index.splits[split], store, shuffle_shards, index.passed_over[split]
        )
        for split in found
    }


def _check_room(cache: ShardCache, parts: dict[str, tuple[Shard, ...]], shuffle_shards: int) -> None:
    block = max(sum(sorted((shard.size for shard in split), reverse=True)[:shuffle_shards]) for split in parts.values())
    if block > cache.at_most:
        raise LocalError(
            f"{shuffle_shards} shards that are shuffled together take up to {block / 1e9:.2f} GB, and the shard cache "
            f"{cache.folder} may hold {cache.at_most / 1e9:.2f} GB; LARGEBATCH_SHARD_CACHE can name a larger disk, "
            "LARGEBATCH_SHARD_CACHE_GB allow more, or data.shuffle_shards be less"
        )


def _open(shard: Shard, cache: ShardCache | None) -> Handle:
    if cache is not None:
        return cache.open(shard)
    handle = Handle(shard.address)
    status = os.fstat(handle.fd)
    if (status.st_size, str(status.st_mtime_ns)) != (shard.size, shard.version):
        raise OSError(errno.ESTALE, "the shard was written anew since it was listed")
    return handle


def _local(root: str) -> Path | None:
    """The folder, or None for an address in a store."""
    if "://" not in root:
        return Path(paths.expanded("data.root", root))
    protocol, _, path = root.partition("://")
    return Path(path) if protocol in ("file", "local") else None


def _found(root: str) -> dict[str, tuple[Shard, ...]]:
    """The shards of each split that is there, sorted by name: beside one another, or else in a folder of the split."""
    top = list(_entries(root))
    found = {}
    for split, beginnings in _SPLITS.items():
        for beginning in beginnings:
            shards = [entry for name, entry in top if isinstance(entry, Shard) and _is_of(beginning, _FILE, name)]
            for name, entry in top if not shards else ():
                if isinstance(entry, str) and _is_of(beginning, _FOLDER, name):
                    shards += [inner for _, inner in _entries(entry) if isinstance(inner, Shard)]
            if shards:
                found[split] = tuple(sorted(shards))
                break
    return found


def _is_of(beginning: str, form: re.Pattern[str], name: str) -> bool:
    match = form.fullmatch(name)
    return match is not None and match[1].lower() == beginning


def _entries(root: str) -> Iterator[tuple[str, Shard | str]]:
    """Name and shard of the tar files in a folder, name and address of its folders."""
    folder = _local(root)
    if folder is None:
        yield from _entries_of_store(root)
        return
    try:
        for entry in os.scandir(folder):
            if is_hidden(entry.name):
                continue
            if entry.is_dir():
                yield entry.name, entry.path
            elif entry.name.endswith(".tar") and entry.is_file():
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    yield entry.name, Shard(entry.path, status.st_size, str(status.st_mtime_ns))
    except OSError as reason:
        raise UserError(f"{folder} cannot be listed: {words(reason)}") from None


def _entries_of_store(root: str) -> Iterator[tuple[str, Shard | str]]:
    try:
        filesystem, path = fsspec.url_to_fs(root)
    except (ImportError, ValueError) as reason:
        raise UserError(f"{root} cannot be opened: {_lacking(root, reason)}") from None
    try:
        listed = filesystem.ls(path, detail=True)
    except FileNotFoundError:
        return  # an object store has no empty folders
    except Exception as reason:  # every store has its own
        raise UserError(f"{root} cannot be listed: {words(reason)}") from None
    for entry in listed:
        name = entry["name"].rstrip("/").rpartition("/")[2]
        address = f"{root.rstrip('/')}/{name}"
        if is_hidden(name):
            continue
        if entry["type"] == "directory":
            yield name, address
        elif name.endswith(".tar"):
            version = next((str(entry[key]) for key in _VERSIONS if entry.get(key)), "")
            if entry["size"] is None:
                raise UserError(f"{address}: the store does not say how many bytes it has")
            yield name, Shard(address, entry["size"], version)


def _lacking(root: str, reason: Exception) -> str:
    """What to install for an address."""
    protocol = root.partition("://")[0].rpartition("::")[2]
    if protocol not in known_implementations:
        return f"{protocol}:// is no kind of store that fsspec knows ({words(reason)})"
    package = known_implementations[protocol]["class"].partition(".")[0]
    return words(reason) if package == "fsspec" else f"`pip install {package}` gives what {protocol}:// needs"
