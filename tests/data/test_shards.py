from __future__ import annotations

import gc
import gzip
import io
import json
import os
import pickle
import re
import tarfile
import threading
from collections.abc import Sequence
from pathlib import Path

import fsspec
import numpy as np
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from largebatch.data import fork_server
from largebatch.data.processes import begin_worker
from largebatch.data.shards import cache as shard_cache
from largebatch.data.shards import source as shards
from largebatch.data.shards.cache import Handle, Unreachable
from largebatch.data.shards.index import scan
from largebatch.data.shards.source import ShardedImages, is_shards, open_shards
from largebatch.errors import LocalError, UserError
from tests.data.test_shard_cache import Store, fetched, wait_until, write_tar


def image(number: int) -> bytes:
    return b"image %d " % number * (1 + number % 3)


def write_split(folder: Path, name: str, sizes: Sequence[int], first: int = 0, classes: int = 3) -> list[Path]:
    """Shards of so many samples each, numbered on; image n is ``image(n)`` of class n mod ``classes``."""
    paths = []
    for shard, size in enumerate(sizes):
        members = {}
        for number in range(first, first + size):
            members |= {f"{number:05d}.jpg": image(number), f"{number:05d}.cls": b"%d" % (number % classes)}
        paths.append(write_tar(folder / f"{name}-{shard:03d}.tar", members))
        first += size
    return paths


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has a cache folder of its own, and short pauses after failures."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LARGEBATCH_SHARD_CACHE", raising=False)
    monkeypatch.delenv("LARGEBATCH_SHARD_CACHE_GB", raising=False)
    monkeypatch.setattr(shard_cache, "FIRST_PAUSE", 0.001)
    return tmp_path / "home" / "largebatch" / "shards"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    write_split(folder, "train", (5, 3, 4, 6))
    write_split(folder, "val", (2, 2), first=18)
    return folder


def read_all(split: ShardedImages) -> list[tuple[bytes, int]]:
    return [(split.read(index), int(split.labels[index])) for index in range(len(split))]


def expected(first: int, last: int, classes: int = 3) -> list[tuple[bytes, int]]:
    return [(image(number), number % classes) for number in range(first, last)]


# What webdataset writes and reads


@pytest.mark.worlds
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves files open
def test_bytes_and_labels_are_those_that_webdataset_reads(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 23), ("val", 7)):
        with webdataset.ShardWriter(f"{tmp_path}/{split}-%04d.tar", maxcount=5, verbose=0) as writer:
            for number in range(count):
                extension = ("jpg", "png", "JPEG", "webp")[number % 4]
                key = f"{split}/n{number % 4:03d}/{number:06d}"
                content = rng.bytes(int(rng.integers(1, 3000)))
                writer.write({"__key__": key, extension: content, "cls": number % 4, "txt": "beside it"})
    opened = open_shards(str(tmp_path))
    for split, pattern in (("train", "train-*.tar"), ("test", "val-*.tar")):
        urls = sorted(map(str, tmp_path.glob(pattern)))
        theirs = []
        for sample in webdataset.WebDataset(urls, shardshuffle=False, empty_check=False):
            content = next(sample[extension] for extension in ("jpg", "jpeg", "png", "webp") if extension in sample)
            theirs.append((content, int(sample["cls"])))
        assert len(theirs) in (23, 7)
        assert read_all(opened[split]) == theirs
    gc.collect()  # here, where it may warn
    assert opened["train"].classes == ("0", "1", "2", "3")
    assert opened["train"].name(6) == f"{tmp_path}/train-0001.tar: train/n002/000006.JPEG"


def test_one_key_is_everything_up_to_the_first_dot(tmp_path):
    members = {
        "__info__": b"not a sample", "a/b.c/7.jpg": b"A", "a/b.c/7.cls": b" 1 \n", "a/b.c/7.seg.png": b"not the image",
        "README": b"no key", "._7.jpg": b"no key", "__meta__/8.jpg": b"", "a/8.CLS": b"0", "a/8.JPG": b"B",
    }  # fmt: skip
    write_tar(tmp_path / "train.tar", members)
    write_tar(tmp_path / "test.tar", {"x.json": b'{"label": 2, "cls": 9}', "x.webp": b"C"})
    opened = open_shards(str(tmp_path))
    assert read_all(opened["train"]) == [(b"A", 1), (b"B", 0)]
    assert read_all(opened["test"]) == [(b"C", 2)]
    assert opened["test"].classes == ("0", "1", "2")


def test_images_and_classes_may_lie_apart_in_a_shard(tmp_path):
    names = {f"{number}.cls": b"%d" % number for number in range(4)}
    write_tar(tmp_path / "train.tar", names | {f"{number}.png": image(number) for number in reversed(range(4))})
    write_tar(tmp_path / "val.tar", {"0.png": image(0), "0.json": b'{"cls": "3"}'})
    opened = open_shards(str(tmp_path))
    assert read_all(opened["train"]) == expected(0, 4, classes=9)
    assert opened["test"].labels.tolist() == [3]


def test_names_of_classes_are_sorted_over_both_splits(tmp_path):
    write_tar(tmp_path / "train.tar", {"0.jpg": b"0", "0.cls": b"owl", "1.jpg": b"1", "1.json": b'{"label": "ape"}'})
    write_tar(tmp_path / "val.tar", {"2.jpg": b"2", "2.cls": "fée\n".encode()})
    opened = open_shards(str(tmp_path))
    assert opened["train"].classes == opened["test"].classes == ("ape", "fée", "owl")
    assert (opened["train"].labels.tolist(), opened["test"].labels.tolist()) == ([2, 0], [1])


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_with_long_names(tmp_path, form):
    folder = "/".join(["a long folder's name, für alle"] * (3 if form == tarfile.USTAR_FORMAT else 40))
    for name in ("train", "val"):
        with tarfile.open(tmp_path / f"{name}.tar", "w", format=form) as archive:
            for member, content in ((f"{folder}/1.jpg", b"the image"), (f"{folder}/1.cls", b"0")):
                header = tarfile.TarInfo(member)
                header.size = len(content)
                archive.addfile(header, io.BytesIO(content))
    split = open_shards(str(tmp_path))["train"]
    assert read_all(split) == [(b"the image", 0)]
    assert split.name(0).endswith("r alle/1.jpg")
    assert len(split.name(0)) < len(str(tmp_path)) + 120


def test_links_and_devices_are_passed_over(tmp_path, root):
    path = root / "train-000.tar"
    with tarfile.open(path, "a") as archive:
        for name, kind in (
            ("0.jpg", tarfile.SYMTYPE), ("../../evil.jpg", tarfile.LNKTYPE),
            ("1.jpg", tarfile.CHRTYPE), ("d.jpg", tarfile.DIRTYPE),
        ):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    before = sorted(tmp_path.rglob("*"))
    assert read_all(open_shards(str(root), tmp_path / "kept")["train"]) == expected(0, 18)
    new = set(tmp_path.rglob("*")) - set(before)
    kinds = {path.suffix for path in new if path.is_file()}
    assert kinds == {".npz", ".lock"}, "nothing is unpacked"


def test_hidden_members_and_files_are_passed_over_and_told(tmp_path, root):
    members = {
        "._0.jpg": b"mac", "__MACOSX/._0.jpg": b"mac", ".trash/1.jpg": b"1", ".trash/1.cls": b"7", "./2.jpg": b"A",
        "./2.cls": b"0", "a.b/3.jpg": b"B", "a.b/3.cls": b"1",
    }  # fmt: skip
    write_tar(root / "train-004.tar", members)
    (root / "._train-005.tar").write_bytes(b"mac")
    os.mkfifo(root / "train-005.tar")
    for _ in range(2):  # the second time from the kept index
        opened = open_shards(str(root))
        assert read_all(opened["train"]) == [*expected(0, 18), (b"A", 0), (b"B", 1)]
        assert opened["train"].passed_over == "hidden (4): train-004.tar: ._0.jpg, ..."
        assert opened["test"].passed_over == ""


# Where shards lie


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train-000.tar", "val-000.tar"),
        ("training.tar", "validation_1.tar"),
        ("imagenet1k-train-0000.tar", "imagenet1k-validation-00.tar"),
        ("TRAIN0.tar", "test0.tar"),
        ("train/000.tar", "val/000.tar"),
        ("training/a.tar", "validation/a.tar"),
        ("train/a.tar", "test-0.tar"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "file://"])
def test_names_and_folders_of_shards(tmp_path, train, val, prefix):
    write_tar(tmp_path / train, {"0.jpg": b"T", "0.cls": b"0"})
    write_tar(tmp_path / val, {"0.jpg": b"V", "0.cls": b"0"})
    (tmp_path / "latest.tar").write_bytes(b"not one of them")
    assert is_shards(f"{prefix}{tmp_path}")
    opened = open_shards(f"{prefix}{tmp_path}")
    assert {split: read_all(part) for split, part in opened.items()} == {"train": [(b"T", 0)], "test": [(b"V", 0)]}


def test_validation_comes_before_test(root):
    write_split(root, "test", (9,), first=100)
    assert read_all(open_shards(str(root))["test"]) == expected(18, 22)


def test_what_is_not_shards(tmp_path, image_root):
    assert not is_shards(str(image_root))
    write_tar(image_root / "ILSVRC2012_img_train.tar", {})  # left beside what it was unpacked to
    assert not is_shards(str(image_root))
    assert not is_shards(str(tmp_path))
    assert not is_shards(str(tmp_path / "nowhere"))
    assert is_shards("s3://bucket/imagenet")


# Reading


def test_any_example_at_any_time(root):
    train = open_shards(str(root))["train"]
    assert not train.remote
    whole = expected(0, 18)
    for index in np.random.default_rng(0).integers(0, 18, 100).tolist():
        assert (train.read(index), train.labels[index]) == whole[index]


def test_a_part_has_its_own_order(root):
    train = open_shards(str(root))["train"]
    chosen = np.array([17, 0, 6])
    assert read_all(train.part(chosen)) == [expected(0, 18)[index] for index in chosen]
    mask = np.arange(18) % 5 == 0
    assert read_all(train.part(mask)) == [expected(0, 18)[index] for index in (0, 5, 10, 15)]
    assert train.part(chosen).name(0) == train.name(17)


@pytest.mark.worlds
def test_it_crosses_to_other_processes(root):
    train = open_shards(str(root))["train"]
    train.read(0)
    with fork_server.running().Pool(1, initializer=begin_worker) as pool:
        assert pool.apply(read_all, (train,)) == expected(0, 18)


def test_few_files_are_open_at_a_time_and_threads_read_the_right_ones(root, monkeypatch):
    monkeypatch.setattr(shards, "_LOCAL_HANDLES", 2)
    train = open_shards(str(root))["train"]
    whole, wrong = expected(0, 18), []

    def read(seed: int) -> None:
        for index in np.random.default_rng(seed).integers(0, 18, 500).tolist():
            if train.read(index) != whole[index][0]:
                wrong.append(index)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(train._process.handles) == 2


def test_a_shard_written_anew_meanwhile_is_told(root):
    train = open_shards(str(root))["train"]
    write_split(root, "train", (9,))
    with pytest.raises(OSError, match="written anew"):
        train.read(0)
    assert train.read(6) == image(6)


# The index that is kept


def test_the_index_is_kept(root, own_cache, monkeypatch):
    told: list[str] = []
    first = open_shards(str(root), report=told.append)
    assert told[0].startswith("reading the headers of 6 shards, ")
    assert told[-1] == "read the headers of 6 of 6 shards"
    assert len(list(own_cache.glob("*.npz"))) == 1
    monkeypatch.setattr("largebatch.data.shards.index.scan", None)
    again = open_shards(str(root), report=told.append)
    assert told[-1] == "read the headers of 6 of 6 shards"
    assert all(read_all(again[split]) == read_all(first[split]) for split in first)
    assert again["train"].classes == first["train"].classes


def test_shards_written_anew_have_another_index(root):
    open_shards(str(root))
    write_split(root, "val", (2, 2), first=50)
    assert read_all(open_shards(str(root))["test"]) == expected(50, 54)
    os.rename(root / "train-003.tar", root / "train-009.tar")
    assert open_shards(str(root))["train"].name(17) == f"{root}/train-009.tar: 00017.jpg"


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "foreign", "pickle", "out of range"])
def test_a_broken_index_is_made_again(root, own_cache, damage):
    open_shards(str(root))
    (kept,) = own_cache.glob("*.npz")
    content = kept.read_bytes()
    with np.load(kept) as stored:
        arrays = dict(stored)
    if damage == "empty":
        kept.write_bytes(b"")
    elif damage == "cut":
        kept.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        place = content.index(arrays["train.offset"].tobytes())
        kept.write_bytes(content[:place] + b"\xff" + content[place + 1 :])
    elif damage == "foreign":
        np.savez(kept, something=np.arange(3))
    elif damage == "pickle":
        np.savez(kept, **{**arrays, "train.name": np.array([{}], dtype=object)})
    else:
        np.savez(kept, **{**arrays, "train.offset": arrays["train.offset"] + 10**9})
    told: list[str] = []
    assert read_all(open_shards(str(root), report=told.append)["train"]) == expected(0, 18)
    assert told, "the headers were read again"
    told.clear()
    open_shards(str(root), report=told.append)
    assert not told, "and the index is whole now"


def test_where_no_index_can_be_kept_it_is_read_each_time(root, tmp_path):
    (tmp_path / "file").touch()
    for _ in range(2):
        told: list[str] = []
        assert read_all(open_shards(str(root), tmp_path / "file" / "below", told.append)["train"]) == expected(0, 18)
        assert told


def start(root: str, begin, answers) -> None:
    begin.wait()
    told: list[str] = []
    train = open_shards(root, report=told.append)["train"]
    answers.put((read_all(train) == expected(0, 18), len(told) > 0))


@pytest.mark.worlds
def test_ranks_that_start_together_read_the_headers_once(root):
    context = fork_server.running()
    begin, answers = context.Barrier(3), context.Queue()
    started = [context.Process(target=start, args=(str(root), begin, answers)) for _ in range(3)]
    for process in started:
        process.start()
    got = [answers.get(timeout=120) for _ in started]
    for process in started:
        process.join()
    assert all(right for right, _ in got)
    assert sum(read for _, read in got) == 1


# Object stores


def upload(root: Path, address: str) -> str:
    filesystem = fsspec.filesystem("memory")
    for path in root.rglob("*.tar"):
        filesystem.pipe_file(f"{address}/{path.relative_to(root)}", path.read_bytes())
    return address


@pytest.fixture
def memory(root):
    yield upload(root, "memory://bucket/imagenet")
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def test_a_store_gives_the_same_as_a_folder(root, memory):
    assert is_shards(memory)
    here, there = open_shards(str(root)), open_shards(memory)
    for split in here:
        assert there[split].remote
        assert read_all(there[split]) == read_all(here[split])
        assert np.array_equal(there[split].labels, here[split].labels)
    assert there["train"].name(0) == "memory://bucket/imagenet/train-000.tar: 00000.jpg"


def test_folders_in_a_store(tmp_path):
    write_split(tmp_path / "train", "a", (2, 1))
    write_split(tmp_path / "validation", "b", (2,))
    address = upload(tmp_path, "memory://folders")
    assert read_all(open_shards(address)["train"]) == expected(0, 3)


def test_a_start_and_an_epoch_fetch_each_shard_once(root):
    told: list[str] = []
    address = f"store://{root}"
    train = open_shards(address, report=told.append, shuffle_shards=2)["train"]
    assert told
    for index in train.epoch_order(0, 0).tolist():
        assert train.read(index) == image(index)
    again = open_shards(address, report=told.append, shuffle_shards=2)["train"]
    assert read_all(again) == expected(0, 18)
    assert sorted(fetched(root).values()) == [1] * 6


def test_with_room_for_one_block_an_epoch_fetches_each_shard_once(root, monkeypatch):
    sizes = sorted(path.stat().st_size for path in root.glob("train-*.tar"))
    address = f"store://{root}"
    monkeypatch.setenv("LARGEBATCH_SHARD_CACHE_GB", str(sum(sizes[-2:]) / 1e9))
    train = open_shards(address, shuffle_shards=2)["train"]
    for path in (root.parent / "home").rglob("fetched/*.tar"):
        path.unlink()
    (root / "requests").unlink()
    order = train.epoch_order(0, 0)
    for place, index in enumerate(order.tolist()):
        train.ahead(place, seed=0)
        assert train.read(index) == image(index)
    assert fetched(root) == {f"train-{number:03d}.tar": 1 for number in range(4)}


def test_the_next_block_is_fetched_ahead(root, own_cache):
    train = open_shards(f"store://{root}", shuffle_shards=1)["train"]
    for path in own_cache.glob("fetched/*.tar"):
        path.unlink()
    (root / "requests").unlink()
    order = [int(train.index.shard[index]) for index in train.epoch_order(4, 1)]
    blocks = list(dict.fromkeys(order))
    name = lambda shard: f"train-{shard:03d}.tar"  # noqa: E731
    train.ahead(18, seed=4)  # epoch 1 begins
    wait_until(lambda: set(fetched(root)) == {name(blocks[0]), name(blocks[1])})
    train.ahead(18 + order.index(blocks[1]), seed=4)
    wait_until(lambda: set(fetched(root)) == {name(shard) for shard in blocks[:3]})
    first_of_next = int(train.index.shard[train.epoch_order(4, 2)[0]])
    train.ahead(18 + 17, seed=4)
    wait_until(lambda: set(fetched(root)) == {name(shard) for shard in [*blocks[:3], blocks[3], first_of_next]})


def test_evaluation_has_the_next_shard_fetched(root, own_cache):
    test = open_shards(f"store://{root}")["test"]
    for path in own_cache.glob("fetched/*.tar"):
        path.unlink()
    (root / "requests").unlink()
    test.ahead(0)
    wait_until(lambda: dict(fetched(root)) == {"val-000.tar": 1, "val-001.tar": 1})
    test.ahead(3)
    assert read_all(test) == expected(18, 22)


def test_ahead_wants_what_fits_beside_the_block_and_once_a_block(root, monkeypatch):
    wanted: list[list[str]] = []
    monkeypatch.setattr(shards.Ahead, "want", lambda ahead, some: wanted.append([shard.address for shard in some]))
    (size,) = {path.stat().st_size for path in write_split(root, "train", (5, 5, 5, 5))}
    monkeypatch.setenv("LARGEBATCH_SHARD_CACHE_GB", str(3.5 * size / 1e9))
    train = open_shards(f"store://{root}", shuffle_shards=2)["train"]
    order = [train.shards[shard].address for block in train._order(0, 0).blocks for shard in block]
    second = int(train._order(0, 0).ends[0])
    for position in range(second):
        train.ahead(position, seed=0)
    assert wanted == [order[:3]]
    train.ahead(second, seed=0)
    assert len(wanted) == 2
    assert wanted[1][:2] == order[2:]
    assert len(wanted[1]) == 3


def test_local_shards_need_no_ahead(root):
    train = open_shards(str(root))["train"]
    train.ahead(0, seed=0)
    assert train._process.ahead is None


def test_a_store_that_is_gone_is_told_with_the_shard(root, own_cache):
    train = open_shards(f"store://{root}")["train"]
    for path in own_cache.glob("fetched/*.tar"):
        path.unlink()
    (root / "failing").write_text("99")
    with pytest.raises(Unreachable, match=r"store://.*/train-000.tar cannot be fetched, tried 5 times"):
        train.read(0)


@pytest.mark.worlds
def test_a_store_of_another_process_is_opened_there(root):
    train = open_shards(f"store://{root}")["train"]
    train.ahead(0, seed=0)
    assert len(pickle.dumps(train)) < 10_000
    with fork_server.running().Pool(1, initializer=begin_worker) as pool:
        assert pool.apply(read_all, (train,)) == expected(0, 18)
    assert fetched(root)["train-000.tar"] == 1


def test_a_block_that_the_cache_cannot_hold_is_refused(root, monkeypatch):
    monkeypatch.setenv("LARGEBATCH_SHARD_CACHE_GB", "0.00003")
    with pytest.raises(LocalError, match="4 shards that are shuffled together take .*data.shuffle_shards be less"):
        open_shards(f"store://{root}", shuffle_shards=4)


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("s3://bucket/imagenet", "`pip install s3fs` gives what s3:// needs"),
        ("gs://bucket/imagenet", "`pip install gcsfs` gives what gs:// needs"),
        ("nothing://bucket", "nothing:// is no kind of store that fsspec knows"),
    ],
)
def test_what_to_install_for_an_address(address, told, monkeypatch):
    def missing(*args: object, **kwargs: object) -> None:
        raise ImportError("Install s3fs to access S3")

    if not address.startswith("nothing"):
        monkeypatch.setattr(fsspec, "url_to_fs", missing)  # wherever it is installed
    with pytest.raises(UserError, match=f"{address} cannot be opened: {re.escape(told)}"):
        open_shards(address)


# The order of an epoch


@st.composite
def sources(draw) -> ShardedImages:
    sizes = draw(st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any))
    return source_of(sizes, draw(st.integers(1, 14)))


def source_of(sizes: Sequence[int], shuffle_shards: int) -> ShardedImages:
    numbers = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    zeros = np.zeros(len(numbers), dtype=np.int64)
    index = shards.Index(numbers, zeros, zeros, zeros, zeros.astype(np.bytes_))
    return ShardedImages(
        ("0",), tuple(shards.Shard(str(n), 1, "") for n in range(len(sizes))), index, None, shuffle_shards
    )


@pytest.mark.worlds
@settings(max_examples=200, deadline=None)
@given(source=sources(), seed=st.integers(0, 2**32), epoch=st.integers(0, 1000))
def test_an_epoch_has_every_example_once_in_blocks_of_shards(source, seed, epoch):
    order = source.epoch_order(seed, epoch)
    assert sorted(order) == list(range(len(source)))
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(again.epoch_order(seed, epoch), order)
    present = len(set(source.index.shard.tolist()))
    visited = source.index.shard[order]
    blocks, seen = [], 0
    while seen < len(order):  # a block is the examples of its shards, and those alone
        before = set(visited[:seen].tolist())
        size = min(source.shuffle_shards, present - len(before))
        block = source._order(seed, epoch).blocks[len(blocks)]
        assert len(block) == size
        count = int(np.isin(source.index.shard, block).sum())
        assert set(visited[seen : seen + count].tolist()) == set(block.tolist())
        blocks.append(block)
        seen += count
    assert seen == len(order)


@pytest.mark.worlds
@settings(max_examples=50, deadline=None)
@given(source=sources(), data=st.data())
def test_a_part_is_ordered_like_a_whole(source, data):
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(source), max_size=len(source)).filter(any)))
    part = source.part(mask)
    assert sorted(part.epoch_order(1, 2)) == list(range(int(mask.sum())))


@pytest.mark.worlds
def test_every_example_comes_at_every_place_equally_often():
    source = source_of([3] * 6, shuffle_shards=2)
    places = np.zeros((18, 18))
    for epoch in range(4000):
        order = source.epoch_order(7, epoch)
        places[order, np.arange(18)] += 1
    assert chisquare(places.ravel(), ddof=2 * 17).pvalue > 1e-4
    together = [set(source.index.shard[source.epoch_order(7, epoch)][:6].tolist()) for epoch in range(600)]
    pairs = [sum({a, b} <= block for block in together) for a in range(6) for b in range(a)]
    assert chisquare(pairs).pvalue > 1e-4, "any two shards may share a block"


def test_epochs_and_seeds_differ():
    source = source_of([10] * 8, shuffle_shards=4)
    orders = [source.epoch_order(seed, epoch).tolist() for seed in range(3) for epoch in range(3)]
    assert all(a != b for number, a in enumerate(orders) for b in orders[:number])


# Bad input


def refused(root: Path | str, *words: str) -> str:
    with pytest.raises(UserError) as met:
        open_shards(str(root))
    sentence = str(met.value)
    assert all(word in sentence for word in words), sentence
    assert "\n" not in sentence
    return sentence


def test_no_shards(tmp_path):
    refused(tmp_path, str(tmp_path), "holds no shards to train on; train*.tar or train/*.tar")
    refused(tmp_path / "nowhere", "nowhere cannot be listed: No such file")
    refused("memory://empty", "memory://empty holds no shards to train on")


def test_no_shards_to_test_on(root):
    for path in root.glob("val*"):
        path.unlink()
    refused(root, str(root), "holds no shards to test on; val*.tar, test*.tar")
    assert read_all(open_shards(str(root), splits=["train"])["train"]) == expected(0, 18)


def test_a_start_without_the_store_is_lost(root):
    address = f"store://{root}"
    (root / "failing").write_text("999")
    with pytest.raises(Unreachable, match="cannot be fetched, tried 5 times"):
        open_shards(address)


def test_a_store_that_cannot_be_listed(root, monkeypatch):
    def denied(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Access Denied")

    monkeypatch.setattr(Store, "ls", denied)
    refused(f"store://{root}", f"store://{root} cannot be listed: Access Denied")


BAD = {
    "no class": ({"1.jpg": b"x"}, "1.jpg has no class; 1.cls or 1.json should hold it"),
    "no image": ({"1.cls": b"0", "1.txt": b""}, "sample 1 has 1.cls but no image (jpg, jpeg, png, webp)"),
    "two images": ({"1.jpg": b"x", "1.png": b"x", "1.cls": b"0"}, "1.png is one more beside 1.jpg"),
    "empty class": ({"1.jpg": b"x", "1.cls": b" \n"}, "1.cls holds no class"),
    "binary class": ({"1.jpg": b"x", "1.cls": b"\xff\xfe"}, "1.cls holds no class"),
    "negative": ({"1.jpg": b"x", "1.cls": b"-1"}, "class -1 in 1.cls is out of range; 0 to 999999"),
    "huge": ({"1.jpg": b"x", "1.cls": b"9" * 5000}, "is out of range"),
    "broken json": ({"1.jpg": b"x", "1.json": b"{"}, "1.json holds no class"),
    "deep json": ({"1.jpg": b"x", "1.json": b"[" * 100_000}, "1.json holds no class"),
    "json without": ({"1.jpg": b"x", "1.json": b'{"caption": "a"}'}, "1.json holds no class"),
    "json list": ({"1.jpg": b"x", "1.json": b"[3]"}, "1.json holds no class"),
    "json bool": ({"1.jpg": b"x", "1.json": b'{"label": true}'}, "1.json holds no class"),
    "json fraction": ({"1.jpg": b"x", "1.json": json.dumps({"cls": 1.5}).encode()}, "1.json holds no class"),
    "another kind": ({"1.jpg": b"x", "1.cls": b"cat"}, "the name 'cat'; all need numbers, or all names"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_sample_is_told_with_shard_and_member(root, case):
    members, told = BAD[case]
    write_tar(root / "train-002.tar", members)
    refused(root, "train-002.tar", told)


def test_a_member_that_is_there_twice(root):
    with tarfile.open(root / "train-001.tar", "a") as archive:
        archive.addfile(tarfile.TarInfo("00006.jpg"))
    refused(root, "train-001.tar: 00006.jpg is there twice")


def test_shards_without_images(root):
    for path in root.glob("val*"):
        write_tar(path, {})
    refused(root, "the test shards hold no images: ", "val-000.tar and 1 others")


def test_a_shard_that_cannot_be_read(root, monkeypatch):
    def denied(path: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shards, "Handle", denied)
    refused(root, "train-000.tar cannot be read: Permission denied")


def test_cut_tars(root):
    """Wherever it is cut, but for zeros at the end."""
    path = root / "train-001.tar"
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for length in (0, 100, 512, 700, 1024, end - 1024, end - 1, end):
        path.write_bytes(whole[:length])
        sentence = refused(root, "train-001.tar")
        assert "is cut off" in sentence or "is not a whole tar file" in sentence
    path.write_bytes(whole[: end + 512])
    assert len(open_shards(str(root))["train"]) == 18


def test_a_broken_header_is_not_the_end(root):
    path = root / "train-001.tar"
    whole = bytearray(path.read_bytes())
    whole[2048 + 150] ^= 0xFF  # in the checksum of the third header
    path.write_bytes(whole)
    refused(root, "train-001.tar has a broken header after 00005.cls, at byte 2048")


def test_what_is_no_tar(root):
    path = root / "val-001.tar"
    whole = path.read_bytes()
    for content in (gzip.compress(whole), b"\xff" * 5000):
        path.write_bytes(content)
        refused(root, "val-001.tar is not a whole tar file")


@pytest.mark.worlds
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_in_a_shard_it_is_read_or_told(tmp_path, data):
    """Bytes of headers changed at random: images inside the file, or one sentence."""
    path = tmp_path / "fuzzed.tar"
    members = {f"{n}.{e}": b"%d" % n for n in range(3) for e in ("jpg", "cls")}
    content = bytearray(write_tar(path, members).read_bytes()[:7168])
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, 5)) * 1024 + data.draw(st.integers(0, 511))
        content[place] = data.draw(st.integers(0, 255))
    for start_of in range(0, 6144, 1024):  # checksums that fit, so that more than they is tried
        if data.draw(st.booleans()):
            header = content[start_of : start_of + 512]
            header[148:156] = b" " * 8
            content[start_of + 148 : start_of + 156] = b"%06o\0 " % sum(header)
    path.write_bytes(content)
    handle = Handle(path)
    try:
        found = scan(handle, str(path))
    except UserError as told:
        assert "fuzzed.tar" in str(told)
    else:
        assert all(one.offset >= 0 and one.offset + one.length <= len(content) and one.length >= 0 for one in found)
