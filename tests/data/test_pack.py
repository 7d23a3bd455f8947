"""Reading packs: any image at any time, exactly, and nothing that is not what pack.json says."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packs import by_hand, facts_of, packed, promised, sealed

from largebatch.data.packs.pack import JpegPack, PixelPack, is_pack, open_pack, verify
from largebatch.errors import UserError


def train_of(root: Path) -> PixelPack:
    split = open_pack(root).splits["train"]
    assert isinstance(split, PixelPack)
    return split


def stored(root: Path) -> np.ndarray:
    """All images, by numpy alone."""
    return np.concatenate([np.load(path) for path in sorted(root.glob("train-0*.npy"))])


@pytest.fixture
def jpegs(image_root, tmp_path) -> Path:
    packed(image_root, tmp_path / "jpegs", size=None, per_file=7)
    return tmp_path / "jpegs"


@pytest.mark.worlds
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.data())
@settings(max_examples=40, deadline=None)
def test_any_image_of_any_part_is_the_stored_one(tmp_path_factory, per_file, data):
    root = by_hand(tmp_path_factory.mktemp("pack"), per_file)
    pack, images, meant = train_of(root), stored(root), np.arange(sum(per_file))
    for _ in range(data.draw(st.integers(0, 2), "parts of parts")):
        chosen = np.array(data.draw(st.lists(st.integers(0, len(meant) - 1), min_size=1, max_size=8)))
        pack, meant = pack.part(chosen), meant[chosen]
    indices = np.array(data.draw(st.lists(st.integers(0, len(meant) - 1), max_size=9)), dtype=np.int64)
    assert np.array_equal(pack.gather(indices), images[meant[indices]])
    assert np.array_equal(pack.labels, meant % 3)
    assert len(pack) == len(meant)
    for index in indices.tolist():
        assert pack.name(index).endswith(f".npy: {meant[index]}.jpg")


def test_a_mask_an_array_to_fill_and_another_process(tmp_path):
    root = by_hand(tmp_path / "pack", [3, 4])
    pack, images = train_of(root), stored(root)
    odd = pack.part(np.arange(7) % 2 == 1)
    out = np.zeros((2, 2, 2, 3), np.uint8)
    assert odd.gather(np.array([2, 0]), out) is out
    assert np.array_equal(out, images[[5, 1]])
    sent = pickle.dumps(odd)
    assert len(sent) < 2000, "paths, not pixels"
    assert np.array_equal(pickle.loads(sent).gather(np.array([1])), images[[3]])
    assert (odd.size, odd.classes, odd.name(2)) == (2, ("a", "b", "c"), f"{root}/train-00001.npy: 5.jpg")


@pytest.mark.parametrize("index", [-1, 3])
def test_an_index_beyond_the_part_is_refused(tmp_path, index):
    part = train_of(by_hand(tmp_path / "pack", [3, 4])).part(np.arange(3))
    with pytest.raises(IndexError):
        part.gather(np.array([0, index]))
    with pytest.raises(IndexError):
        part.name(index)


def test_many_processes_map_the_same_pages(tmp_path):
    """The maps are read-only and shared: what is read once is in memory once."""
    pack = train_of(by_hand(tmp_path / "pack", [3, 4]))
    pack.gather(np.array([0]))
    [line] = [line for line in Path("/proc/self/maps").read_text().splitlines() if "pack/train-00000.npy" in line]
    assert line.split()[1] == "r--s"


@pytest.mark.worlds
def test_jpegs_are_a_source(jpegs, image_root):
    pack = open_pack(jpegs)
    assert (pack.form, pack.size, sorted(pack.splits)) == ("jpeg", None, ["test", "train"])
    train = pickle.loads(pickle.dumps(pack.splits["train"]))
    assert isinstance(train, JpegPack)
    mixed = train.part(np.array([24, 0, 13])).part(np.array([True, False, True]))
    paths = [image_root / "train" / name for name in ("dog/11.png", "dog/00.JPEG")]
    assert [mixed.read(i) for i in range(2)] == [path.read_bytes() for path in paths]
    assert mixed.name(0) == f"{jpegs}/train-00003.jpegs: train/dog/11.png"
    assert mixed.labels.tolist() == [1, 1]


@pytest.mark.worlds
def test_jpegs_that_vanish_while_they_are_read_are_an_error_of_the_disk(jpegs):
    train = open_pack(jpegs).splits["train"]
    assert isinstance(train, JpegPack)
    os.truncate(jpegs / "train-00000.jpegs", 100)
    with pytest.raises(OSError, match=r"train-00000\.jpegs ends before byte"):
        train.read(6)
    (jpegs / "train-00001.jpegs").unlink()
    with pytest.raises(FileNotFoundError):
        train.read(7)


def test_a_pack_is_known_by_its_files(tmp_path):
    assert is_pack(by_hand(tmp_path / "pack", [3]))
    assert not is_pack(tmp_path)
    (tmp_path / "packing.jsonl").write_text("")
    assert is_pack(tmp_path)
    with pytest.raises(UserError, match="is a pack that is not finished; run its `largebatch data pack` again"):
        open_pack(tmp_path)
    with pytest.raises(UserError, match=r"is not a pack: it has no pack\.json"):
        open_pack(tmp_path / "elsewhere")


class Trap:
    """Unpickled it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, (str(self.path),)


def resaved(root: Path, key: str, array: Any) -> None:
    """Another array in place of the file, and pack.json made to fit."""
    facts = facts_of(root)
    split = facts["splits"]["train"]
    name = split[key]["name"] if key != "files" else split["files"][0]["name"]
    np.save(root / name, array, allow_pickle=True)
    if key == "files":
        split["files"][0] |= promised(root / name)
    else:
        split[key] = promised(root / name)
    sealed(root, facts)


def changed(*place: Any, to: Any) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        facts = facts_of(root)
        inner = facts
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = to
        sealed(root, facts)

    return change


def flipped(name: str) -> Callable[[Path], None]:
    def flip(root: Path) -> None:
        content = bytearray((root / name).read_bytes())
        content[-2] ^= 1
        (root / name).write_bytes(content)

    return flip


FILE = ("splits", "train", "files", 0)
FOREIGN = {
    "its own checksum": (
        lambda root: (root / "pack.json").write_text((root / "pack.json").read_text().replace('"a"', '"z"')),
        "the checksum of {root}/pack.json does not fit",
    ),
    "no checksum": (lambda root: (root / "pack.json").write_text("{}"), "the checksum of {root}/pack.json does not"),
    "no text": (lambda root: (root / "pack.json").write_bytes(b"\xff\xfe"), "{root}/pack.json is no text"),
    "another version": (
        changed("version", to=2), "{root}/pack.json has version 2; this largebatch reads version 1"
    ),
    "another program": (changed("format", to="zip"), "{root}/pack.json is of another program"),
    "an unknown key": (changed("more", to=1), "{root}/pack.json does not say what a pack holds: more: "),
    "a key of another type": (changed("size", to="2"), "{root}/pack.json does not say what a pack holds: size: "),
    "a form that does not fit": (changed("form", to="jpeg"), "holds: size is 2 and form is jpeg"),
    "a path outside": (changed(*FILE, "name", to="../x.npy"), "a pack holds: splits.train.files.0.name"),
    "no training images": (
        lambda root: sealed(root, facts_of(root) | {"splits": {}}), "{root}/pack.json names no training images"
    ),
    "a missing file": (lambda root: (root / "train-00001.npy").unlink(), "{root}/train-00001.npy is missing"),
    "a truncated file": (
        lambda root: os.truncate(root / "train-00001.npy", 150), "{root}/train-00001.npy has 150 bytes, not 176"
    ),
    "changed labels": (flipped("train-labels.npy"), "the checksum of {root}/train-labels.npy does not fit"),
    "changed names": (flipped("train-names.npy"), "the checksum of {root}/train-names.npy does not fit"),
    "a label too large": (
        lambda root: resaved(root, "labels", np.array([0, 1, 2, 0, 1, 2, 3])),
        "{root}/train-labels.npy holds label 3; the pack has 3 classes",
    ),
    "a negative label": (
        lambda root: resaved(root, "labels", np.array([0, 1, 2, 0, 1, 2, -1])), "train-labels.npy holds label -1"
    ),
    "labels of another type": (
        lambda root: resaved(root, "labels", np.zeros(7, np.float32)), "holds float32 (7,), not int64 (7,)"
    ),
    "too few labels": (lambda root: resaved(root, "labels", np.zeros(6, np.int64)), "holds int64 (6,), not int64 (7,)"),
    "names that are numbers": (lambda root: resaved(root, "names", np.zeros(7)), "train-names.npy holds float64"),
    "pixels of another shape": (
        lambda root: resaved(root, "files", np.zeros((3, 2, 2, 4), np.uint8)),
        "{root}/train-00000.npy holds uint8 (3, 2, 2, 4), not uint8 (3, 2, 2, 3)",
    ),
    "pixels in another order": (
        lambda root: resaved(root, "files", np.asfortranarray(np.zeros((3, 2, 2, 3), np.uint8))), "00000.npy holds"
    ),
    "pixels that are text": (
        lambda root: (
            (root / "train-00000.npy").write_bytes(b"x" * 200), changed(*FILE, "bytes", to=200)(root)
        ),
        "{root}/train-00000.npy is no array of numbers: ",
    ),
    "a header that promises more": (
        lambda root: (
            resaved(root, "files", np.zeros((300, 2, 2, 3), np.uint8)),
            os.truncate(root / "train-00000.npy", 164), changed(*FILE, "bytes", to=164)(root),
        ),
        "{root}/train-00000.npy is no array of numbers: ",
    ),
    "files in the wrong order": (
        changed("splits", "train", "files", 1, "first", to=2), "train-00001.npy begins with example 2, not 3"
    ),
    "too few images": (
        lambda root: (changed("splits", "train", "files", 1, "examples", to=3)(root)),
        "the files hold 6 examples, not 7",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FOREIGN)
def test_a_foreign_file_is_refused_by_its_name(tmp_path, case):
    damage, sentence = FOREIGN[case]
    root = by_hand(tmp_path / "pack", [3, 4])
    open_pack(root)
    damage(root)
    with pytest.raises(UserError) as refused:
        open_pack(root)
    assert sentence.format(root=root) in str(refused.value)


@pytest.mark.parametrize("key", ["labels", "names", "files"])
def test_a_pickle_is_never_opened(tmp_path, key):
    root = by_hand(tmp_path / "pack", [7])
    resaved(root, key, np.array([Trap(tmp_path / "trapped")] * 7, dtype=object))
    with pytest.raises(UserError, match="is no array of numbers"):
        open_pack(root)
    assert not (tmp_path / "trapped").exists()
    split = facts_of(root)["splits"]["train"]
    np.load(root / (split[key] if key != "files" else split["files"][0])["name"], allow_pickle=True)
    assert (tmp_path / "trapped").exists(), "the trap works"


INDEX = {  # row, column, value
    "another file": (3, 0, 1),
    "a file that is not there": (3, 0, 9),
    "before its file": (3, 1, -1),
    "behind its file": (3, 1, 10**12),
    "a negative length": (3, 2, -1),
    "a length beyond its file": (3, 2, 10**12),
    "a sum beyond all numbers": (3, 1, 2**63 - 1),
}


@pytest.mark.worlds
@pytest.mark.parametrize("case", INDEX)
def test_an_index_that_points_outside_is_refused(jpegs, case):
    row, column, value = INDEX[case]
    index = np.load(jpegs / "train-index.npy")
    index[row, column] = value
    resaved(jpegs, "index", index)
    with pytest.raises(UserError, match=rf"{jpegs}/train-index\.npy points outside the images' files: example {row}$"):
        open_pack(jpegs)


@pytest.mark.worlds
def test_verify_reads_every_byte(tmp_path, jpegs):
    root = by_hand(tmp_path / "pack", [3, 4])
    heard: list[tuple[int, int]] = []
    verify(root, lambda done, total: heard.append((done, total)))
    assert heard[-1] == (sum(path.stat().st_size for path in root.glob("*.npy")),) * 2
    for folder, name in ((root, "train-00001.npy"), (jpegs, "test-00000.jpegs")):
        flipped(name)(folder)
        open_pack(folder)
        with pytest.raises(UserError, match=rf"the checksum of {folder}/{name} does not fit"):
            verify(folder)
