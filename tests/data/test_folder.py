from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from largebatch.data import build
from largebatch.data.folder import scan
from largebatch.errors import UserError
from tests.data.test_workers import build_folder, collected, files_of, plan_of


def test_what_a_folder_holds(image_root: Path):
    (image_root / "train" / "cat" / "notes.txt").write_text("not an image")
    (image_root / "train" / ".hidden").mkdir()
    dataset = build_folder(image_root)
    assert dataset.classes == ["cat", "dog"]
    assert (len(dataset.train), len(dataset.test)) == (25, 7)
    assert dataset.input_shape == (3, 16, 16)
    assert files_of(dataset) == sorted(
        str(path) for path in image_root.glob("train/*/*") if path.suffix in (".png", ".JPEG")
    )
    assert build("folder", root=str(image_root)).input_shape == (3, 224, 224)


def test_hold_out_replaces_the_test_set(image_root: Path):
    shutil.rmtree(image_root / "val")
    dataset = build_folder(image_root, hold_out=6)
    held, kept = set(files_of(dataset, "test")), set(files_of(dataset))
    assert (len(held), len(kept), len(held & kept)) == (6, 19, 0)
    assert held == set(files_of(build_folder(image_root, hold_out=6, seed=7), "test"))
    collected(dataset, plan_of(dataset))


def test_folders_that_are_not_data_sets(image_root: Path):
    with pytest.raises(UserError, match="class folders; imagenet needs 1000"):
        build("imagenet", root=str(image_root))
    with pytest.raises(UserError, match=r"data.hold_out = 25 leaves nothing to train on; at most 24"):
        build_folder(image_root, hold_out=25)
    (image_root / "val" / "bird").mkdir()
    with pytest.raises(UserError, match="val/bird holds no images"):
        build_folder(image_root)
    shutil.copy(image_root / "val" / "cat" / "00.JPEG", image_root / "val" / "bird")
    with pytest.raises(UserError, match="differ in class 'bird'"):
        build_folder(image_root)
    shutil.rmtree(image_root / "val")
    with pytest.raises(UserError, match="has no val or test folder"):
        build_folder(image_root)
    shutil.rmtree(image_root / "train")
    with pytest.raises(UserError, match=r"data set folder not found in .*; data.root should be a folder with"):
        build_folder(image_root)
    (image_root / "train").mkdir()
    with pytest.raises(UserError, match="train has no class folders"):
        build_folder(image_root)


@pytest.mark.worlds
def test_imagenet_needs_and_takes_a_thousand_classes(tmp_path: Path):
    image = tmp_path / "image.JPEG"
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(image)
    for number in range(1000):
        for split in ("train", "val"):
            (tmp_path / split / f"n{number:08d}").mkdir(parents=True)
            os.link(image, tmp_path / split / f"n{number:08d}" / "a.JPEG")
    dataset = build("imagenet", root=str(tmp_path))
    assert (dataset.outputs, dataset.input_shape, len(dataset.train)) == (1000, (3, 224, 224), 1000)
    assert dataset.facts["augment"] == "resized_crop_flip"


def test_files_are_a_source(image_root: Path):
    files = scan(image_root / "train")
    part = files.part(np.array([24, 3]))
    assert part.labels.tolist() == [1, 0]
    assert [part.name(0), part.name(1)] == [files.name(24), files.name(3)]
    assert part.read(1) == Path(files.name(3)).read_bytes()
    assert part.classes == files.classes
    Path(files.name(3)).unlink()
    with pytest.raises(FileNotFoundError):
        part.read(1)


def small_folder(root: Path) -> Path:
    """train: a and b with two images each, one of them in a folder below; val the same."""
    for split in ("train", "val"):
        for label in "ab":
            (root / split / label / "more").mkdir(parents=True)
            for name in ("0.png", "more/1.png"):
                Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(root / split / label / name)
    return root


def link(place: Path, target: str) -> None:
    place.symlink_to(target)


@pytest.mark.parametrize(
    ("add", "classes", "images", "told"),
    [
        (lambda train: link(train / "a" / "up", ".."), "ab", 4, "loop of links (1): a/up"),
        (lambda train: link(train / "a" / "top", "../.."), "ab", 4, "loop of links (1): a/top"),
        (lambda train: link(train / "a" / "more" / "self", "."), "ab", 4, "loop of links (1): a/more/self"),
        (lambda train: link(train / "c", ".."), "ab", 4, "loop of links (1): c"),
        (lambda train: link(train / "a" / "a_first", "../b"), "ab", 4, "linked again (1): a/a_first"),
        (lambda train: link(train / "a" / "0_first", "../b/more"), "ab", 4, "linked again (1): a/0_first"),
        (lambda train: link(train / "0", "b"), "ab", 4, "linked again (1): 0"),
        (lambda train: link(train / "a" / "twice.png", "0.png"), "ab", 4, "linked again (1): a/twice.png"),
        (lambda train: link(train / "c", "../val/a"), "abc", 6, ""),
        (lambda train: link(train / "a" / "new.png", "../../val/a/0.png"), "ab", 5, ""),
        (lambda train: link(train / "a" / "broken.png", "nowhere"), "ab", 5, ""),
        (lambda train: link(train / "a" / "itself.png", "itself.png"), "ab", 5, ""),
        (lambda train: (train / "a" / "._1.jpg").touch(), "ab", 4, "hidden (1): a/._1.jpg"),
        (lambda train: shutil.copytree(train / "b", train / "a" / ".thumbs"), "ab", 4, "hidden (1): a/.thumbs"),
        (lambda train: shutil.copytree(train / "b", train / "__MACOSX"), "ab", 4, "hidden (1): __MACOSX"),
        (lambda train: [(train / p / ".DS_Store").touch() for p in "ab"], "ab", 4, "hidden (2): a/.DS_Store, ..."),
        (lambda train: os.mkfifo(train / "a" / "pipe.jpg"), "ab", 4, "pipe, socket or device (1): a/pipe.jpg"),
        (lambda train: link(train / "a" / "zero.jpg", "/dev/zero"), "ab", 4, "pipe, socket or device (1): a/zero.jpg"),
        (lambda train: (train / "a" / "x.jpg").mkdir(), "ab", 4, ""),
    ],
)
def test_every_file_counts_once_and_what_is_no_image_is_told(tmp_path, add, classes, images, told):
    root = small_folder(tmp_path)
    add(root / "train")
    files = scan(root / "train")
    assert ("".join(files.classes), len(files), files.passed_over) == (classes, images, told)
    assert len({files.name(index) for index in range(len(files))}) == images


def test_what_was_passed_over_is_said(tmp_path):
    root = small_folder(tmp_path)
    (root / "val" / "b" / ".DS_Store").touch()
    link(root / "train" / "a" / "up", "..")
    told = "in train: loop of links (1): a/up; in test: hidden (1): b/.DS_Store"
    assert build_folder(root).facts["passed over"] == told
    assert "passed over" not in build_folder(small_folder(tmp_path / "clean")).facts


def test_a_file_that_became_a_pipe_is_not_waited_for(tmp_path):
    files = scan(small_folder(tmp_path) / "train")
    Path(files.name(0)).unlink()
    os.mkfifo(files.name(0))
    with pytest.raises(OSError, match="it is a pipe, socket or device"):
        files.read(0)
