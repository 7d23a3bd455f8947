"""Making packs: the same images from any source, whole files or none, and what is refused before and on the way."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pool
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packs import as_parquet, as_shards, contents, encoded, facts_of, folder_sources, packed
from PIL import Image

from largebatch.data.folder import scan
from largebatch.data.packs import packing
from largebatch.data.packs.origins import origins
from largebatch.data.packs.pack import JpegPack, PixelPack, open_pack, verify
from largebatch.data.packs.progress import MakingProgress
from largebatch.data.packs.writing import WrittenFile, refuse_machine_failure
from largebatch.data.shards.cache import Unreachable
from largebatch.errors import UserError


def triangle(length: int, first: int, short: int, size: int) -> np.ndarray:
    """Weights (size, length) of the antialiased bilinear filter: a triangle as wide as two of the smaller pixels."""
    scale = short / size
    centres = first + (np.arange(size) + 0.5) * scale
    distance = np.abs(np.arange(length) + 0.5 - centres[:, None]) / max(scale, 1)
    weights = np.clip(1 - distance, 0, None)
    return weights / weights.sum(1, keepdims=True)


def square(encoded: bytes, size: int) -> np.ndarray:
    """The central square, resized, in float64."""
    pixels = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")).astype(np.float64)
    tall, wide, _ = pixels.shape
    short = min(tall, wide)
    rows = triangle(tall, (tall - short) // 2, short, size)
    columns = triangle(wide, (wide - short) // 2, short, size)
    return np.einsum("ij,jkc,lk->ilc", rows, pixels, columns)


@pytest.mark.worlds
@pytest.mark.parametrize("size", [11, 24])
def test_pixels_are_the_central_squares_in_the_folders_order(image_root, tmp_path, size):
    facts = packed(image_root, tmp_path / "pack", size=size, per_file=7)
    assert facts is not None
    pack = open_pack(tmp_path / "pack")
    assert pack.facts == facts
    assert (pack.form, pack.size, pack.classes) == ("pixels", size, ("cat", "dog"))
    assert [file.examples for file in facts.splits["train"].files] == [7, 7, 7, 4]
    for split, source in folder_sources(image_root).items():
        found = pack.splits[split]
        assert isinstance(found, PixelPack)
        assert np.array_equal(found.labels, source.labels)
        expected = np.stack([square(source.read(index), size) for index in range(len(source))])
        assert np.abs(found.gather(np.arange(len(source))) - expected).max() < 1.01, "Pillow rounds twice"
        for index in (0, len(source) - 1):
            assert found.name(index).endswith(os.path.relpath(source.name(index), image_root))


@pytest.mark.worlds
def test_an_image_of_the_packs_size_is_kept_as_it_is(tmp_path):
    """Also where the middle would lie between two pixels."""
    for split in ("train", "val"):
        (tmp_path / "images" / split / "a").mkdir(parents=True)
        (tmp_path / "images" / split / "a" / "0.png").write_bytes(encoded(23, 16, form="PNG"))
    packed(tmp_path / "images", tmp_path / "pack")
    found = open_pack(tmp_path / "pack").splits["train"]
    assert isinstance(found, PixelPack)
    whole = np.asarray(Image.open(tmp_path / "images" / "train" / "a" / "0.png"))
    assert np.array_equal(found.gather(np.array([0]))[0], whole[:, 3:19])


@pytest.mark.worlds
def test_shards_and_parquet_give_what_the_folder_gives(image_root, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sources = folder_sources(image_root)
    as_shards(sources, tmp_path / "shards")
    as_parquet(sources, tmp_path / "parquet")
    kinds = {"shards": "WebDataset shards", "parquet": "parquet folder", "images": "image folder"}
    for size in (16, None):
        packs = {}
        for kind, title in kinds.items():
            facts = packed(tmp_path / kind, tmp_path / f"{kind}-{size}", size=size, per_file=6)
            assert facts is not None
            assert facts.source.kind == title
            packs[kind] = open_pack(tmp_path / f"{kind}-{size}")
        assert packs["parquet"].classes == ("cat", "dog")
        for split, source in sources.items():
            for pack in packs.values():
                found = pack.splits[split]
                assert np.array_equal(found.labels, source.labels)
                if isinstance(found, JpegPack):
                    assert [found.read(i) for i in range(len(found))] == [source.read(i) for i in range(len(source))]
        images = {kind: images_of(tmp_path / f"{kind}-{size}") for kind in kinds}
        assert len(images["images"]) == 7
        assert images["shards"] == images["parquet"] == images["images"]
    assert packs["shards"].splits["train"].name(9).endswith("train-00001.jpegs: train-000001.tar: 000009.jpg")
    assert packs["parquet"].splits["test"].name(6).endswith("data/validation-00002-of-00003.parquet: 006.jpg")


def images_of(root: Path) -> list[bytes]:
    splits = facts_of(root)["splits"].values()
    return [(root / file["name"]).read_bytes() for split in splits for file in split["files"]]


def test_how_many_files():
    """About 1 GiB; smaller while the set is small; never more than 256 of a split."""
    each = 3 * 256 * 256
    for images, expected in ((100, 341), (13_000, 341), (349_525, 5461), (1_281_167, 5461), (14_000_000, 54_688)):
        assert packing._per_file(images, each) == expected, images
        assert expected * 256 >= images


# --- interrupted -----------------------------------------------------------------------------------------------------


def until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def lines_in(dest: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return (dest / "packing.jsonl").read_bytes().count(b"\n")
    return 0


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_and_ends_with_the_same_bytes(image_root, tmp_path):
    packed(image_root, tmp_path / "undisturbed", per_file=3)
    gate = image_root / "train" / "dog" / "03.png.wait"  # image 16: of the sixth file
    gate.touch()
    dest = tmp_path / "pack"
    program = pool.start("worlds.packing:pack", image_root, dest)
    until(lambda: lines_in(dest) == 1 + 9 + 3 - 1)
    workers = psutil.Process(program.pid).children(recursive=True)
    assert workers
    program.send_signal(signal.SIGKILL)
    assert program.wait() == -signal.SIGKILL
    psutil.wait_procs(workers, timeout=30)
    assert not [worker for worker in workers if worker.is_running()], "its workers end with it"
    before = {path.name: path.stat() for path in dest.iterdir()}
    [torn] = [name for name in before if name.endswith(".unfinished")]
    assert torn.startswith("train-00005.")
    assert "pack.json" not in before
    with open(dest / "packing.jsonl", "ab") as progress:
        progress.write(b'{"torn')  # as a kill within the write leaves it
    gate.unlink()
    said: list[str] = []
    counted: list[tuple[int, int]] = []
    packed(image_root, dest, per_file=3, say=said.append, report=lambda *n: counted.append(n))
    assert "in 12 files (11 are there), 1 process" in said[0]
    assert counted[-1] == (32, 32)
    assert min(counted)[0] >= 29, "what was made is counted"
    assert contents(dest) == contents(tmp_path / "undisturbed")
    for name, status in before.items():
        if name not in (torn, "packing.jsonl"):
            assert (dest / name).stat().st_ino == status.st_ino, f"{name} was whole and stays"
    verify(dest)


@pytest.mark.worlds
@pytest.mark.parametrize("size", [16, None], ids=["pixels", "jpeg"])
def test_after_a_mistake_it_goes_on_and_a_file_that_lost_bytes_is_made_again(image_root, tmp_path, size):
    """The line says it is whole; its size says otherwise."""
    packed(image_root, tmp_path / "undisturbed", size=size, per_file=3)
    dest = tmp_path / "pack"
    broken = image_root / "val" / "dog" / "02.JPEG"
    kept = broken.read_bytes()
    broken.write_bytes(kept[:100])
    with pytest.raises(
        UserError, match=r"02\.JPEG cannot be read as an image: .*; of a test set all images are needed"
    ):
        packed(image_root, dest, size=size, per_file=3)
    assert lines_in(dest) >= 2
    done = json.loads((dest / "packing.jsonl").read_bytes().splitlines()[1])["name"]
    os.truncate(dest / done, 100)
    broken.write_bytes(kept)
    packed(image_root, dest, size=size, per_file=3)
    assert contents(dest) == contents(tmp_path / "undisturbed")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    (place := tmp_path / "disk").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.worlds
def test_a_full_disk_keeps_what_is_whole(tmp_path, disk):
    for split in ("train", "val"):
        (tmp_path / "images" / split / "a").mkdir(parents=True)
        for number in range(12):
            (tmp_path / "images" / split / "a" / f"{number:02d}.png").write_bytes(encoded(200, 200, number, "PNG"))
    packed(tmp_path / "images", tmp_path / "undisturbed", size=None, per_file=4)
    dest = disk / "pack"
    with pytest.raises(
        UserError,
        match=r"disk/pack cannot be written: No space left on device; [1-5] of 6 files are whole, and the same",
    ):
        packed(tmp_path / "images", dest, size=None, per_file=4, workers=1)
    whole = [name for name in contents(dest) if name.endswith(".jpegs")]
    assert whole
    assert not list(dest.glob("*.unfinished")), "the room is given back"
    subprocess.run(["mount", "-o", "remount,size=9m", disk], check=True)
    packed(tmp_path / "images", dest, size=None, per_file=4)
    assert contents(dest) == contents(tmp_path / "undisturbed")
    with open(disk / "filler", "wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize - 2**20)
    with pytest.raises(UserError, match=r"disk/more needs 2\.9 MB, and its disk has 1\.0 MB left"):
        packed(tmp_path / "images", disk / "more", size=200)


@pytest.mark.worlds
def test_two_at_once_are_refused(image_root, tmp_path):
    source = origins(str(image_root))
    dest = tmp_path / "pack"
    dest.mkdir()
    begun = {"form": "pixels", "size": 16, "source": source.fingerprint, "per_file": {"train": 9, "test": 9}}
    with (
        MakingProgress(dest, begun, WrittenFile),
        pytest.raises(UserError, match=f"another process is making a pack in {dest}"),
    ):
        packed(image_root, dest)
    assert packed(image_root, dest) is not None


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.worlds
def test_a_finished_pack_is_there_already_and_another_is_refused(image_root, tmp_path):
    dest = tmp_path / "pack"
    packed(image_root, dest)
    before = contents(dest)
    assert packed(image_root, dest) is None
    moved = shutil.move(image_root, tmp_path / "moved")
    assert packed(moved, dest) is None, "the same images elsewhere"
    with pytest.raises(UserError, match=f"{dest} is a pack of 16 × 16 pixels, not of 20 × 20 pixels; choose another"):
        packed(moved, dest, size=20)
    with pytest.raises(UserError, match=f"{dest} is a pack of 16 × 16 pixels, not of encoded images"):
        packed(moved, dest, size=None)
    (tmp_path / "moved" / "train" / "cat" / "new.png").write_bytes(encoded(30, 30))
    with pytest.raises(UserError, match=f"{dest} is a pack of other images than {moved} holds; choose another folder"):
        packed(moved, dest)
    assert contents(dest) == before


@pytest.mark.worlds
def test_the_same_for_one_that_is_not_finished(image_root, tmp_path):
    dest = tmp_path / "pack"
    (image_root / "val" / "cat" / "00.JPEG").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"val/cat/00\.JPEG cannot be read as an image: not an image of a known format"):
        packed(image_root, dest)
    with pytest.raises(UserError, match="is a pack of 16 × 16 pixels, not of 20 × 20 pixels; choose another folder"):
        packed(image_root, dest, size=20)


@pytest.mark.worlds
def test_a_folder_with_other_files_is_left_alone(image_root, tmp_path):
    with pytest.raises(
        UserError, match=f"{image_root} holds other files \\(train\\); a pack needs a folder of its own"
    ):
        packed(image_root, image_root)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file cannot be written: Not a directory"):
        packed(image_root, tmp_path / "file")
    with pytest.raises(UserError, match="file/pack cannot be written: Not a directory"):
        packed(image_root, tmp_path / "file" / "pack")


@pytest.mark.worlds
def test_a_size_larger_than_most_images_is_a_mistake(tmp_path):
    """Before anything is written; the size that is offered is the largest that is none."""
    for split in ("train", "val"):
        (tmp_path / "images" / split / "a").mkdir(parents=True)
        for number, (width, height) in enumerate([(50, 90), (70, 30), (40, 41), (20, 25), (60, 60)]):
            (tmp_path / "images" / split / "a" / f"{number}.jpg").write_bytes(encoded(width, height, number))
    with pytest.raises(UserError) as refused:
        packed(tmp_path / "images", tmp_path / "pack", size=41)
    assert str(refused.value) == (
        f"--size 41 is larger than the short side of 3 of 5 images looked at, as of {tmp_path}/images/train/a/1.jpg, "
        "which is 70 × 30; half of them have 40 or more"
    )
    assert not (tmp_path / "pack").exists()
    facts = packed(tmp_path / "images", tmp_path / "pack", size=40)
    assert facts is not None
    for split, facts_of_split in facts.splits.items():
        assert facts_of_split.enlarged == 2
        smallest = facts_of_split.smallest
        folder = "val" if split == "test" else split
        assert (smallest.name, smallest.width, smallest.height) == (f"{folder}/a/3.jpg", 20, 25)
    assert packed(tmp_path / "images", tmp_path / "jpegs", size=None) is not None, "encoded images have any size"


@pytest.mark.worlds
def test_images_that_do_not_decode(image_root, tmp_path):
    """Refused by name; or a share of the training images is left out, listed, and everything else moves up."""
    source = scan(image_root / "train")
    broken = [image_root / "train" / name for name in ("cat/02.JPEG", "cat/11.png", "dog/10.JPEG")]
    kept = {path: path.read_bytes() for path in broken}
    broken[0].write_bytes(b"no image")
    for path in broken[1:]:
        path.write_bytes(kept[path][: len(kept[path]) // 2])
    refusal = f"{broken[0]} cannot be read as an image: not an image of a known format"
    with pytest.raises(UserError, match=refusal):
        packed(image_root, tmp_path / "refused")
    assert not (tmp_path / "refused").exists(), "the headers were looked at first"
    for size in (16, None):
        dest = tmp_path / f"pack-{size}"
        with pytest.raises(UserError, match="as an image: .*; --skip-unreadable allows 2, and there are more"):
            packed(image_root, dest, size=size, per_file=1, skip_unreadable=0.08)
        facts = packed(image_root, dest, size=size, per_file=1, skip_unreadable=0.12)
        assert facts is not None
        assert list(facts.splits["train"].left_out) == ["train/cat/02.JPEG", "train/cat/11.png", "train/dog/10.JPEG"]
        assert facts.splits["train"].left_out["train/cat/02.JPEG"] == "not an image of a known format"
        readable = source.part(np.setdiff1d(np.arange(25), [2, 11, 23]))
        pack = open_pack(dest)
        train = pack.splits["train"]
        assert np.array_equal(train.labels, readable.labels)
        for index in (0, 2, 11, 21):
            assert train.name(index).endswith(os.path.relpath(readable.name(index), image_root))
        if isinstance(train, JpegPack):
            assert [train.read(i) for i in range(22)] == [readable.read(i) for i in range(22)]
        else:
            expected = np.stack([square(readable.read(i), 16) for i in range(22)])
            assert np.abs(train.gather(np.arange(22)) - expected).max() < 1.01
        assert not (dest / facts_of(dest)["splits"]["train"]["files"][2]["name"]).name.startswith("train-00002")


@pytest.mark.worlds
def test_whatever_is_no_image_is_left_out(image_root, tmp_path):
    train = image_root / "train"
    for name in ("cat/03.png", "cat/12.JPEG", "dog/04.JPEG"):
        (train / name).unlink()
    (train / "cat" / "03.png").touch()
    (train / "cat" / "12.JPEG").symlink_to(tmp_path / "nowhere")
    source = origins(str(image_root))
    (train / "cat" / "05.png").unlink()
    (train / "cat" / "05.png").mkdir()
    (train / "dog" / "03.png").unlink()
    os.mkfifo(train / "dog" / "03.png")
    with pytest.raises(UserError, match=r"cat/03\.png cannot be read as an image: not an image of a known format"):
        packing.pack(source, tmp_path / "refused", size=16, workers=1)
    for size in (16, None):
        facts = packing.pack(source, tmp_path / f"pack-{size}", size=size, workers=1, skip_unreadable=0.2)
        assert facts is not None
        assert facts.splits["train"].left_out == {
            "train/cat/03.png": "not an image of a known format",
            "train/cat/05.png": "Is a directory",
            "train/cat/12.JPEG": "No such file or directory",
            "train/dog/03.png": "it is a pipe, socket or device",
        }
    with pytest.raises(UserError, match="--skip-unreadable allows 3, and there are more"):
        packing.pack(source, tmp_path / "more", size=16, workers=1, skip_unreadable=0.13)


@pytest.mark.worlds
def test_a_row_without_bytes_is_left_out(image_root, tmp_path):
    root = as_parquet(folder_sources(image_root), tmp_path / "set", files=1)
    path = root / "data" / "train-00000-of-00001.parquet"
    table = pq.read_table(path)
    rows = table["image"].to_pylist()
    rows[2]["bytes"], rows[7] = None, None
    image = pa.array(rows, table["image"].type)
    pq.write_table(table.set_column(0, table.schema.field(0), image), path)
    with pytest.raises(UserError, match=r"002\.jpg cannot be read as an image: the column image\.bytes is empty here"):
        packed(root, tmp_path / "refused")
    facts = packed(root, tmp_path / "pack", skip_unreadable=0.1)
    assert facts is not None
    assert (facts.splits["train"].examples, len(facts.splits["train"].left_out)) == (23, 2)


@pytest.mark.parametrize("failure", [OSError(errno.EMFILE, "Too many open files"), Unreachable("the store is gone")])
def test_a_failure_of_the_machine_leaves_no_image_out(failure):
    with pytest.raises(UserError, match=r"^a\.jpg cannot be read: (Too many open files|the store is gone)"):
        refuse_machine_failure("a.jpg", failure)
    refuse_machine_failure("a.jpg", OSError(errno.ENOENT, "No such file or directory"))
    with pytest.raises(MemoryError):
        refuse_machine_failure("a.jpg", MemoryError())


def test_sources_that_are_none(image_root, tmp_path):
    (tmp_path / "empty").mkdir()
    for given, sentence in (
        ("nowhere", "nowhere is no folder"),
        ("empty", "holds no data set: train/<class>/*.jpg, train-*.tar and train-*.parquet are looked for there"),
    ):
        with pytest.raises(UserError) as refused:
            origins(str(tmp_path / given))
        assert sentence in str(refused.value)
    (image_root / "train" / "eel").mkdir()
    with pytest.raises(UserError, match="train/eel holds no images"):
        origins(str(image_root))
    shutil.copy(image_root / "train" / "cat" / "00.JPEG", image_root / "train" / "eel")
    with pytest.raises(UserError, match="training and test images differ in class 'eel'; both need the same classes"):
        origins(str(image_root))
    assert list(origins(str(image_root), "train").splits) == ["train", "test"]
    shutil.rmtree(image_root / "val")
    assert list(origins(str(image_root)).splits) == ["train"]
    with pytest.raises(UserError, match="images/proof is missing"):
        origins(str(image_root), "proof")
