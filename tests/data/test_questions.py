"""What is asked of a set of images, whatever its form: are all classes there, and all files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from packs import as_parquet, folder_sources

from largebatch.data import build
from largebatch.data.packs.origins import origins
from largebatch.data.questions import same_classes, whole_set
from largebatch.errors import UserError
from tests.data.test_shard_cache import write_tar


class Labelled(NamedTuple):
    classes: tuple[str, ...]
    labels: np.ndarray


def labelled(classes: str, labels: list[int]) -> Labelled:
    return Labelled(tuple(classes), np.array(labels))


@pytest.mark.parametrize(
    ("train", "test", "sentence"),
    [
        (labelled("0123", [1, 2, 3]), None, "no train image has class '0'; the labels are 1 to 3, and classes"),
        (labelled("0123", [0, 3]), None, "2 of 4 classes have no train image, such as '1'; the labels are 0 to"),
        (labelled("ab", [0, 0]), labelled("ab", [0, 1]), "no train image has class 'b'; both need the same classes"),
        (labelled("ab", [0, 1]), labelled("ab", [0, 0]), "no test image has class 'b'; both need the same classes"),
        (labelled("ab", [0, 1]), labelled("ac", [0, 1]), "training and test images differ in class 'b'"),
    ],
)  # fmt: skip
def test_every_class_has_images(train, test, sentence):
    with pytest.raises(UserError) as refused:
        same_classes("here", {"train": train} if test is None else {"train": train, "test": test})
    assert str(refused.value).startswith(f"here: {sentence}")


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["train-000.tar", "train-002.tar"], "s3://x/train-001.tar is missing; there are 2 of 3 numbered files"),
        (["train-5.tar", "train-6.tar"], "s3://x/train-1.tar is missing and 3 more; there are 2 of 6 numbered files"),
        (["t-00000-of-00003.tar"], "s3://x/t-00001-of-00003.tar is missing and 1 more; there are 1 of 3 numbered"),
        (["t-0-of-2-ab.parquet"], "s3://x/t-1-of-2.parquet is missing; there are 1 of 2 numbered files"),
        (["train-1.tar", "train-2.tar"], None),
        (["t-1-of-2.tar", "t-2-of-2.tar"], None),
        (["train-00.tar", "val-00.tar"], None),
        (["00.tar", "01.tar", "00.tar"], None),
        (["cars-2012.tar"], None),
        (["train-a1f2.tar", "train-b9e7.tar"], None),
    ],
)
def test_no_file_of_a_numbered_set_is_missing(names, sentence):
    if sentence is None:
        whole_set("s3://x/", names)
        return
    with pytest.raises(UserError) as refused:
        whole_set("s3://x/", names)
    assert str(refused.value).startswith(sentence)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def shards_of(root: Path, train: list[int], test: list[int]) -> Path:
    """A shard for each label."""
    for split, labels in (("train", train), ("val", test)):
        for shard, label in enumerate(labels):
            write_tar(root / f"{split}-{shard:03d}.tar", {"0.jpg": b"image", "0.cls": b"%d" % label})
    return root


def refusals(root: Path) -> set[str]:
    """In training and in packing."""
    told = set()
    for ask in (lambda: build("folder", root=str(root), workers=0), lambda: origins(str(root))):
        with pytest.raises(UserError) as refused:
            ask()
        told.add(str(refused.value))
    return told


def test_shards_are_asked_in_training_and_packing(tmp_path):
    one_based = shards_of(tmp_path / "one", [1, 2, 3], [1, 2, 3])
    rule = "the labels are 1 to 3, and classes are numbered from 0 and none left out"
    assert refusals(one_based) == {f"{one_based}: no train image has class '0'; {rule}"}
    val_alone = shards_of(tmp_path / "val", [0, 1], [0, 1, 2])
    assert [sentence.partition("; ")[0] for sentence in refusals(val_alone)] == [
        f"{val_alone}: no train image has class '2'"
    ]
    gap = shards_of(tmp_path / "gap", [0, 1, 1], [0, 1])
    (gap / "train-001.tar").unlink()
    assert refusals(gap) == {f"{gap}/train-001.tar is missing; there are 2 of 3 numbered files"}
    (gap / "train-002.tar").rename(gap / "train-001.tar")
    assert build("folder", root=str(gap), workers=0).outputs == 2


def test_folders_and_parquet_are_asked_the_same(image_root, tmp_path):
    sources = folder_sources(image_root)
    few = {"train": sources["train"].part(np.arange(13)), "test": sources["test"]}
    with pytest.raises(UserError, match="no train image has class 'dog'; both need the same classes"):
        origins(str(as_parquet(few, tmp_path / "parquet", files=1)))
    shutil.copytree(image_root / "val" / "dog", image_root / "val" / "eel")
    assert {sentence.partition(": ")[2] for sentence in refusals(image_root)} == {
        "training and test images differ in class 'eel'; both need the same classes"
    }
