from __future__ import annotations

import errno
import fcntl
import io
import os
import pickle
import signal
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem

from largebatch.data import fork_server
from largebatch.data.shards import cache as module
from largebatch.data.shards.cache import Ahead, Shard, ShardCache, Unreachable, shard_cache
from largebatch.errors import LocalError, Lost


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


class Store(LocalFileSystem):
    """An object store whose objects are local files, and which does what files beside them say.

    ``requests`` has a line for each fetch; ``failing`` and ``cut`` hold how many of the next fetches fail or break off;
    while there is a ``hold``, a fetch stands still after half of the bytes.
    """

    protocol = "store"
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return LocalFileSystem._strip_protocol(str(path).removeprefix("store://"))

    def get_file(self, path1, path2, callback=None, **kwargs):
        source = Path(path1)
        with open(source.parent / "requests", "a") as log:
            log.write(source.name + "\n")
        if self._once(source.parent / "failing"):
            raise ConnectionResetError("the store hung up")
        content = source.read_bytes()
        half = len(content) // 2
        with open(path2, "wb") as file:
            file.write(content[:half])
            file.flush()
            wait_until(lambda: not (source.parent / "hold").exists())
            if not self._once(source.parent / "cut"):
                file.write(content[half:])

    @staticmethod
    def _once(left: Path) -> bool:
        if not left.exists():
            return False
        with open(left, "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            count = int(file.read())
            file.seek(0)
            file.truncate()
            file.write(str(max(0, count - 1)))
        return count > 0


fsspec.register_implementation("store", Store, clobber=True)


def wait_until(happened: Callable[[], bool]) -> None:
    for _ in range(6000):
        if happened():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen within a minute")


def fetched(folder: Path) -> Counter:
    log = folder / "requests"
    return Counter(log.read_text().split()) if log.exists() else Counter()


def content_of(number: int, size: int = 1000) -> bytes:
    return np.random.default_rng(number).bytes(size)


@pytest.fixture
def objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Shard]:
    """Eight objects of a thousand bytes in a store; pauses after failures are short."""
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.001)
    folder = tmp_path / "store"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.tar").write_bytes(content_of(number))
    return [Shard(f"store://{folder}/{number}.tar", 1000, "1") for number in range(8)]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def cache_of(tmp_path: Path, shards: float = 100) -> ShardCache:
    return ShardCache(tmp_path / "cache", int(1000 * shards))


def here(cache: ShardCache, objects: list[Shard]) -> list[int]:
    return [number for number, shard in enumerate(objects) if cache.holds(shard)]


def test_a_shard_is_fetched_once_and_then_lies_here(objects, store, tmp_path):
    cache = cache_of(tmp_path)
    for _ in range(3):
        assert cache.open(objects[3]).read(0, 1000) == content_of(3)
    assert fetched(store) == {"3.tar": 1}
    assert cache.open(objects[3]).read(990, 100) == content_of(3)[990:]


def test_another_version_is_another_shard(objects, store, tmp_path):
    cache = cache_of(tmp_path)
    cache.open(objects[0])
    (store / "0.tar").write_bytes(content_of(70))
    assert cache.open(objects[0]._replace(version="2")).read(0, 1000) == content_of(70)
    assert cache.open(objects[0]).read(0, 1000) == content_of(0)


def test_a_kept_shard_of_another_size_is_fetched_again(objects, store, tmp_path):
    cache = cache_of(tmp_path)
    cache.open(objects[0])
    os.truncate(cache.folder / objects[0].file, 10)
    assert cache.open(objects[0]).read(0, 1000) == content_of(0)
    assert fetched(store) == {"0.tar": 2}


def test_the_least_recently_used_make_room(objects, tmp_path):
    cache = cache_of(tmp_path, 3)
    for number in (0, 1, 2):
        cache.open(objects[number])
        os.utime(cache.folder / objects[number].file, (number, number))
    cache.open(objects[0])
    cache.open(objects[3])
    assert here(cache, objects) == [0, 2, 3]


def test_a_shard_in_use_is_not_the_one_removed(objects, tmp_path):
    cache = cache_of(tmp_path, 3)
    used = cache.open(objects[0])
    for number in (1, 2, 3, 4):
        cache.open(objects[number])
    assert 0 in here(cache, objects)
    del used
    for number in (5, 6, 7):
        cache.open(objects[number])
    assert here(cache, objects) == [5, 6, 7]


def test_where_all_are_in_use_readers_go_on_reading_what_was_removed(objects, tmp_path):
    cache = cache_of(tmp_path, 2)
    handles = [cache.open(shard) for shard in objects]
    assert len(here(cache, objects)) == 2
    assert [handle.read(0, 1000) for handle in handles] == [content_of(number) for number in range(8)]


def test_what_is_not_needed_yet_drives_out_nothing_in_use(objects, store, tmp_path):
    cache = cache_of(tmp_path, 2)
    handles = [cache.open(objects[0]), cache.open(objects[1])]
    assert not cache.fetch(objects[2])
    assert fetched(store) == {"0.tar": 1, "1.tar": 1}
    handles.pop()
    assert cache.fetch(objects[2])
    assert here(cache, objects) == [0, 2]


def test_files_of_others_in_the_folder_stay(objects, tmp_path):
    cache = cache_of(tmp_path, 1)
    cache.folder.mkdir()
    mine = [cache.folder / name for name in ("train.tar", "train.tar.part-5", "0" * 31 + ".tar")]
    for path in mine:
        path.write_bytes(bytes(5000))
    cache.open(objects[0])
    cache.open(objects[1])
    assert all(path.stat().st_size == 5000 for path in mine)
    assert here(cache, objects) == [1]


@pytest.mark.parametrize("trouble", ["failing", "cut"])
def test_a_fetch_that_fails_is_tried_again(objects, store, tmp_path, trouble):
    (store / trouble).write_text("3")
    assert cache_of(tmp_path).open(objects[1]).read(0, 1000) == content_of(1)
    assert fetched(store) == {"1.tar": 4}


def test_pauses_grow(objects, store, tmp_path, monkeypatch):
    (store / "failing").write_text("4")
    pauses: list[float] = []
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    cache_of(tmp_path).open(objects[1])
    assert len(pauses) == 4
    assert all(0.75 <= pause / (0.001 * 2**n) <= 1.25 for n, pause in enumerate(pauses))


@pytest.mark.parametrize(
    ("trouble", "told"), [("failing", "tried 5 times: the store hung up"), ("cut", "500 bytes came of 1000")]
)
def test_a_store_that_stays_away_is_told(objects, store, tmp_path, trouble, told):
    (store / trouble).write_text("99")
    cache = cache_of(tmp_path)
    with pytest.raises(Unreachable, match=f"1.tar cannot be fetched, .*{told}") as met:
        cache.open(objects[1])
    assert isinstance(met.value, Lost)
    assert isinstance(met.value, OSError)
    assert not list(cache.folder.glob("*.tar*part*"))
    crossed = pickle.loads(pickle.dumps(met.value))
    assert (str(crossed), crossed.errno) == (str(met.value), errno.EHOSTUNREACH)
    (store / trouble).unlink()
    assert cache.open(objects[1]).size == 1000


def test_a_shard_that_is_gone_is_not_tried_again(objects, store, tmp_path):
    (store / "1.tar").unlink()
    with pytest.raises(Unreachable, match="1.tar cannot be fetched"):
        cache_of(tmp_path).open(objects[1])
    assert fetched(store) == {"1.tar": 1}


def test_a_full_disk_is_told_at_once(objects, store, tmp_path, monkeypatch):
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Store, "get_file", full)
    with pytest.raises(Unreachable, match="1.tar does not fit into the cache .*: No space left on device; LARGEBATCH_"):
        cache_of(tmp_path).open(objects[1])


def test_shards_ahead_are_fetched_by_a_thread(objects, store, tmp_path):
    cache = cache_of(tmp_path)
    ahead = Ahead(cache)
    ahead.want(objects[2:5])
    wait_until(lambda: here(cache, objects) == [2, 3, 4])
    (store / "failing").write_text("5")
    ahead.want([objects[5]])  # what fails ends no thread
    wait_until(lambda: (store / "failing").read_text() == "0" and not list(cache.folder.glob("*.part-*")))
    assert not cache.holds(objects[5])
    ahead.want([objects[6]])
    wait_until(lambda: cache.holds(objects[6]))
    assert cache.open(objects[5]).read(0, 1000) == content_of(5)


def test_new_wishes_replace_old_ones(objects, store, tmp_path):
    cache, hold = cache_of(tmp_path), store / "hold"
    hold.touch()
    ahead = Ahead(cache)
    ahead.want(objects[:7])
    wait_until(lambda: len(fetched(store)) == 4)  # by as many threads
    ahead.want(objects[7:])
    hold.unlink()
    wait_until(lambda: here(cache, objects) == [0, 1, 2, 3, 7])
    assert not {"4.tar", "5.tar", "6.tar"} & set(fetched(store))


def test_ahead_passes_over_what_another_is_fetching(objects, store, tmp_path):
    cache, hold = cache_of(tmp_path), store / "hold"
    hold.touch()
    reader = threading.Thread(target=cache.open, args=(objects[0],))
    reader.start()
    wait_until(lambda: bool(fetched(store)))
    assert not cache.fetch(objects[0])
    hold.unlink()
    reader.join()
    assert fetched(store) == {"0.tar": 1}


# Several processes


def read_all(cache: ShardCache, objects: list[Shard], seed: int, rounds: int, begin, wrong) -> None:
    begin.wait()
    rng = np.random.default_rng(seed)
    for n in range(rounds):
        order = rng.permutation(len(objects)).tolist() if n else range(len(objects))
        for number in order:
            if cache.open(objects[number]).read(0, 1000) != content_of(number):
                wrong.value += 1


def run_readers(cache: ShardCache, objects: list[Shard], hold: Path, readers: int, rounds: int) -> int:
    """How many of the processes' reads were wrong. The first fetch lasts until all have begun."""
    context = fork_server.running()
    begin, wrong = context.Barrier(readers + 1), context.Value("i", 0)
    started = [
        context.Process(target=read_all, args=(cache, objects, seed, rounds, begin, wrong)) for seed in range(readers)
    ]
    hold.touch()
    for process in started:
        process.start()
    begin.wait(60)
    wait_until(lambda: bool(fetched(hold.parent)))
    time.sleep(0.1)
    hold.unlink()
    for process in started:
        process.join(120)
        assert process.exitcode == 0
    return wrong.value


@pytest.mark.worlds
def test_the_processes_of_a_host_fetch_each_shard_once(objects, store, tmp_path):
    assert run_readers(cache_of(tmp_path), objects, store / "hold", readers=4, rounds=3) == 0
    assert fetched(store) == {f"{number}.tar": 1 for number in range(8)}


@pytest.mark.worlds
def test_a_crowded_cache_gives_every_reader_its_bytes(objects, store, tmp_path):
    cache = cache_of(tmp_path, 4)
    assert run_readers(cache, objects, store / "hold", readers=3, rounds=15) == 0
    assert len(here(cache, objects)) <= 4
    assert sum(fetched(store).values()) > 8
    assert not list(cache.folder.glob("*.part-*"))


def fetch_one(cache: ShardCache, shard: Shard) -> None:
    cache.open(shard)


@pytest.mark.slow
def test_a_killed_fetcher_leaves_nothing_in_the_way(objects, store, tmp_path):
    cache, hold = cache_of(tmp_path, 2), store / "hold"
    hold.touch()
    process = fork_server.running().Process(target=fetch_one, args=(cache, objects[0]))
    process.start()
    part = cache.folder / f"{objects[0].file}.part-1000"
    wait_until(lambda: part.exists() and part.stat().st_size == 500)
    assert not cache.fetch(objects[0])  # it is being fetched, and nobody else does
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not cache.holds(objects[0])
    assert part.exists()
    hold.unlink()
    cache.open(objects[1])  # another shard's fetch clears the part away
    assert not part.exists()
    assert cache.open(objects[0]).read(0, 1000) == content_of(0)
    assert fetched(store) == {"0.tar": 2, "1.tar": 1}


@pytest.mark.slow
def test_a_waiting_reader_takes_over_from_a_killed_fetcher(objects, store, tmp_path):
    cache, hold = cache_of(tmp_path), store / "hold"
    hold.touch()
    process = fork_server.running().Process(target=fetch_one, args=(cache, objects[0]))
    process.start()
    wait_until(lambda: bool(fetched(store)))
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(cache.open(objects[0]).read(0, 1000)))
    reader.start()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    hold.unlink()
    reader.join(60)
    assert got == [content_of(0)]
    assert fetched(store) == {"0.tar": 2}


# What the environment says


def test_the_environment_names_place_and_bytes(tmp_path, monkeypatch):
    monkeypatch.setenv("LARGEBATCH_SHARD_CACHE", str(tmp_path / "fast"))
    monkeypatch.setenv("LARGEBATCH_SHARD_CACHE_GB", "1.5")
    assert shard_cache(tmp_path / "usual") == ShardCache(tmp_path / "fast", 1_500_000_000)
    assert not (tmp_path / "usual").exists()


def test_left_alone_it_takes_most_of_what_is_free_or_its_own(objects, tmp_path, monkeypatch):
    monkeypatch.delenv("LARGEBATCH_SHARD_CACHE", raising=False)
    monkeypatch.delenv("LARGEBATCH_SHARD_CACHE_GB", raising=False)
    usage = type("usage", (), {"free": 100_000})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage)
    cache_of(tmp_path).open(objects[0])
    assert shard_cache(tmp_path / "cache") == ShardCache(tmp_path / "cache", 80_800)


@pytest.mark.parametrize("stated", ["0", "-3", "much", "nan", "inf"])
def test_bytes_that_are_none_are_refused(tmp_path, monkeypatch, stated):
    monkeypatch.setenv("LARGEBATCH_SHARD_CACHE_GB", stated)
    with pytest.raises(LocalError, match=f"LARGEBATCH_SHARD_CACHE_GB = '{stated}' is not a number of gigabytes"):
        shard_cache(tmp_path)


def test_a_place_that_is_no_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("LARGEBATCH_SHARD_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    with pytest.raises(LocalError, match="the shard cache .*file cannot be used: .*LARGEBATCH_SHARD_CACHE can name"):
        shard_cache(tmp_path)
