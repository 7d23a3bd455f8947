"""Whole shards of an object store on this host's disk, shared by all its ranks and their workers.

A store answers a request for one image in tens of milliseconds, and one for a whole shard at the speed of the network:
so shards are fetched whole and read from the disk. When the bytes allowed are full the least recently used are removed.

    $LARGEBATCH_SHARD_CACHE       the folder; a fast local disk is best
    $LARGEBATCH_SHARD_CACHE_GB    how much it may hold; default: 80 % of what is free or already the cache's own

The processes of a host agree through the folder alone, by locks that the kernel drops with whoever held them. Who
fetches a shard holds the lock beside it, writes ``<shard>.tar.part-<bytes>`` and renames it when every byte is there;
the others wait for the lock and find the shard. What a killed process left is under nobody's lock, and the next one
clears it away. Who reads a shard holds it open with a shared lock, and room is made elsewhere; if there is no other
room its name goes, and its bytes stay until the reader closes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import random
import re
import shutil
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import fsspec

from largebatch.errors import LocalError, Lost
from largebatch.recipes import paths

TRIES = 5
FIRST_PAUSE = 0.5  # seconds after the first failure; twice as long after each other
_TOGETHER = 4  # fetches ahead of one process: a connection alone is slower than the network
_GIGABYTE = 10**9
_FREE_SHARE = 0.8
_SHARD = re.compile(r"[0-9a-f]{32}\.tar(\.part-(?P<bytes>\d+))?")
_FULL = {errno.ENOSPC, errno.EDQUOT}


class Shard(NamedTuple):
    """One tar file as its store lists it; ``version`` changes when it is written anew."""

    address: str
    size: int
    version: str

    @property
    def file(self) -> str:
        """What it is called in a cache: another version is another file."""
        return hashlib.sha256(repr(tuple(self)).encode()).hexdigest()[:32] + ".tar"


class Unreachable(OSError, Lost):
    """A shard could not be fetched, though it was tried again: an OSError to who reads an image, and to the command
    what a new start may mend."""

    def __init__(self, sentence: str) -> None:
        super().__init__(errno.EHOSTUNREACH, sentence)

    def __reduce__(self) -> tuple:
        return Unreachable, (self.strerror,)

    def __str__(self) -> str:
        return self.strerror or ""


class Handle:
    """A shard open for reading. It closes when the last who holds it lets go, so no read meets another file."""

    __slots__ = ("fd",)

    def __init__(self, path: str | Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # of a pipe, too, it is told at once

    @property
    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def read(self, offset: int, length: int) -> bytes:
        """As many of the bytes as there are."""
        parts = []
        while length and (part := os.pread(self.fd, length, offset)):
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


@dataclass(frozen=True)
class ShardCache:
    """``at_most`` bytes of shards in ``folder``. It crosses to other processes as these two."""

    folder: Path
    at_most: int

    def open(self, shard: Shard) -> Handle:
        """The shard, fetched if it is not here. Raises :class:`Unreachable`."""
        while True:
            found = self._here(shard) or self._fetch(shard, needed=True)
            if found is not None:
                return found

    def fetch(self, shard: Shard) -> bool:
        """Whether the shard is here now: fetched where nobody else is at it and others need not give way."""
        return self.holds(shard) or self._fetch(shard, needed=False) is not None

    def holds(self, shard: Shard) -> bool:
        try:
            return (self.folder / shard.file).stat().st_size == shard.size
        except FileNotFoundError:
            return False

    def _here(self, shard: Shard) -> Handle | None:
        path = self.folder / shard.file
        try:
            handle = _in_use(Handle(path))
            with contextlib.suppress(PermissionError):  # another user's
                os.utime(path)  # when it was last wanted
        except FileNotFoundError:
            return None
        return handle if handle.size == shard.size else None

    def _fetch(self, shard: Shard, needed: bool) -> Handle | None:
        """None where it is not ``needed`` and there is no room for it, or another process is fetching it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with lock(self.folder / f"{shard.file}.lock", wait=needed) as ours:
            if not ours:
                return None
            if self.holds(shard):
                return self._here(shard)
            part = self._room(shard, needed)
            if part is None:
                return None
            try:
                _download(shard, part)
                handle = _in_use(Handle(part))
                os.fsync(handle.fd)
                part.rename(self.folder / shard.file)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            return handle

    def _room(self, shard: Shard, needed: bool) -> Path | None:
        """An empty file whose name keeps the shard's bytes free; for a ``needed`` one even those in use go."""
        part = self.folder / f"{shard.file}.part-{shard.size}"
        with lock(self.folder / "room.lock"):
            part.unlink(missing_ok=True)  # of one that was killed while it had the lock that is ours now
            held = self._contents()
            for left in [path for path in held if path.suffix != ".tar" and _is_left(path)]:
                left.unlink(missing_ok=True)
                del held[left]
            lacking = sum(held.values()) + shard.size - self.at_most
            oldest_first = sorted((path for path in held if path.suffix == ".tar"), key=_last_wanted)
            used = {path for path in oldest_first if lacking > 0 and _is_in_use(path)}
            going = []
            for path in sorted(oldest_first, key=used.__contains__):
                if lacking > 0 and (needed or path not in used):
                    lacking -= held[path]
                    going.append(path)
            if lacking > 0 and not needed:
                return None
            for path in going:
                path.unlink(missing_ok=True)  # who reads it goes on reading
            part.touch()
            return part

    def _contents(self) -> dict[Path, int]:
        """Our files alone, each with the bytes that it takes or is going to take."""
        contents = {}
        for path in self.folder.iterdir():
            if match := _SHARD.fullmatch(path.name):
                with contextlib.suppress(FileNotFoundError):
                    contents[path] = int(match["bytes"] or path.stat().st_size)
        return contents


def shard_cache(folder: Path) -> ShardCache:
    """The cache that the environment asks for, in ``folder`` if it names no other."""
    folder = paths.named_by("LARGEBATCH_SHARD_CACHE") or folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder / "room.lock"):
            held = sum(ShardCache(folder, 0)._contents().values())
        free = shutil.disk_usage(folder).free
    except OSError as reason:
        raise LocalError(
            f"the shard cache {folder} cannot be used: {words(reason)}; LARGEBATCH_SHARD_CACHE can name another"
        ) from None
    stated = os.environ.get("LARGEBATCH_SHARD_CACHE_GB")
    return ShardCache(folder, _bytes(stated) if stated else int(_FREE_SHARE * (free + held)))


def _bytes(gigabytes: str) -> int:
    with contextlib.suppress(ValueError, OverflowError):
        if (stated := int(float(gigabytes) * _GIGABYTE)) > 0:
            return stated
    raise LocalError(f"LARGEBATCH_SHARD_CACHE_GB = {gigabytes!r} is not a number of gigabytes above 0, such as 200")


class Ahead:
    """Shards that will soon be wanted, fetched by threads of the process that wants them.

    Of several processes with the same wishes each takes a shard that no other is fetching.
    """

    def __init__(self, cache: ShardCache) -> None:
        self._cache = cache
        self._wanted: deque[Shard] = deque()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._ended = False

    def want(self, shards: Sequence[Shard]) -> None:
        """These, in this order, instead of whatever was wanted before."""
        with self._changed:
            self._wanted = deque(shards)
            self._changed.notify_all()
            while len(self._threads) < _TOGETHER:
                self._threads.append(threading.Thread(target=self._work, name="shards ahead", daemon=True))
                self._threads[-1].start()

    def end(self) -> None:
        """Nothing more is fetched; the threads end after the shard that each is at."""
        with self._changed:
            self._ended = True
            self._wanted.clear()
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted or self._ended)
                if self._ended:
                    return
                shard = self._wanted.popleft()
            with contextlib.suppress(Exception):  # who needs the shard meets the same and tells it
                self._cache.fetch(shard)


def _download(shard: Shard, part: Path) -> None:
    pause = FIRST_PAUSE
    for attempt in range(1, TRIES + 1):
        try:
            filesystem, path = fsspec.url_to_fs(shard.address)
            filesystem.get_file(path, str(part))
            if (size := part.stat().st_size) == shard.size:
                return
            told = f"{size} bytes came of {shard.size}"
        except Exception as reason:  # every store has its own
            told = words(reason)
            if isinstance(reason, OSError) and reason.errno in _FULL:
                place = "LARGEBATCH_SHARD_CACHE_GB or LARGEBATCH_SHARD_CACHE should say what it has room for"
                sentence = f"{shard.address} does not fit into the cache {part.parent}: {told}; {place}"
                raise Unreachable(sentence) from None
            if isinstance(reason, FileNotFoundError | PermissionError):
                raise Unreachable(f"{shard.address} cannot be fetched: {told}") from None
        if attempt < TRIES:
            time.sleep(pause * random.uniform(0.75, 1.25))  # ranks that failed together come back apart
            pause *= 2
    raise Unreachable(f"{shard.address} cannot be fetched, tried {TRIES} times: {told}")


def words(reason: Exception) -> str:
    return (getattr(reason, "strerror", None) or str(reason) or type(reason).__name__).split("\n")[0]


@contextlib.contextmanager
def lock(path: Path, wait: bool = True) -> Iterator[bool]:
    """Whether the lock is ours; lock files stay, since one that is removed would be locked twice."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        yield _locked(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(fd)


def _locked(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how)
    except BlockingIOError:
        return False
    return True


def _in_use(handle: Handle) -> Handle:
    _locked(handle.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # refused by who makes room just now: then its name may go
    return handle


def _is_in_use(path: Path) -> bool:
    try:
        handle = Handle(path)
    except FileNotFoundError:
        return False
    return not _locked(handle.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_left(part: Path) -> bool:
    """Nobody is fetching it any more."""
    with lock(part.parent / f"{part.name.partition('.part-')[0]}.lock", wait=False) as ours:
        return ours


def _last_wanted(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
