"""Hugging Face's parquet folders as sources: order, labels and classes, and what is refused."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packs import as_parquet, folder_sources

from largebatch.data.packs.parquet import is_parquet, open_parquet
from largebatch.errors import UserError


@pytest.fixture
def sources(image_root):
    return folder_sources(image_root)


def written(root: Path, columns: dict, name: str = "train-00000-of-00001.parquet", **options) -> Path:
    root.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), root / name, **options)
    return root


IMAGES = [{"bytes": b"%d" % i, "path": None} for i in range(5)]


@pytest.mark.parametrize("row_group_size", [1, 4, 100])
def test_every_image_at_any_time(sources, tmp_path, row_group_size):
    opened = open_parquet(as_parquet(sources, tmp_path / "set", row_group_size=row_group_size))
    assert sorted(opened) == ["test", "train"]
    rng = np.random.default_rng(0)
    for split, source in sources.items():
        found = pickle.loads(pickle.dumps(opened[split]))
        assert (len(found), found.classes) == (len(source), ("cat", "dog"))
        assert np.array_equal(found.labels, source.labels)
        for index in rng.permutation(len(source)).tolist():
            assert found.read(index) == source.read(index)
        chosen = rng.permutation(len(source))[:5]
        part = found.part(chosen).part(np.array([True, False, True, True, False]))
        for place, index in enumerate(chosen[[0, 2, 3]].tolist()):
            assert part.read(place) == source.read(index)
            assert part.labels[place] == source.labels[index]
            assert part.name(place) == found.name(index)


def test_names_are_the_files_and_the_path_or_the_row(sources, tmp_path):
    root = as_parquet(sources, tmp_path / "set")
    train = open_parquet(root)["train"]
    assert train.name(9) == f"{root}/data/train-00001-of-00003.parquet: 009.jpg"
    root = written(tmp_path / "bare", {"image": IMAGES, "label": [0, 1, 0, 2, 1]}, "train.parquet")
    bare = open_parquet(root)
    assert list(bare) == ["train"]
    assert bare["train"].name(3) == f"{root}/train.parquet: row 3"
    assert bare["train"].classes == ("0", "1", "2")


def test_a_class_that_one_split_lacks_is_still_one(tmp_path):
    written(tmp_path / "set", {"image": IMAGES, "label": [0, 1, 0, 2, 1]})
    written(tmp_path / "set", {"image": IMAGES[:2], "label": [0, 1]}, "test-00000-of-00001.parquet")
    opened = open_parquet(tmp_path / "set")
    assert opened["train"].classes == opened["test"].classes == ("0", "1", "2")


def test_which_split_is_the_test_set(tmp_path):
    """validation before test, whose labels are often secret; or the one that is named."""
    root = written(tmp_path / "set", {"image": IMAGES, "label": [0, 1, 0, 2, 1]})
    for name, labels in (("validation", [1]), ("test", [-1]), ("proof", [2])):
        written(root, {"image": IMAGES[:1], "label": labels}, f"{name}-00000-of-00001.parquet")
    assert open_parquet(root)["test"].labels.tolist() == [1]
    assert open_parquet(root, "proof")["test"].labels.tolist() == [2]
    with pytest.raises(UserError, match=r"test-00000-of-00001\.parquet holds label -1: a split without labels\?"):
        open_parquet(root, "test")
    with pytest.raises(UserError, match=r"--val val: .*/set has no val-\*\.parquet"):
        open_parquet(root, "val")


def test_a_file_that_is_missing_is_named(sources, tmp_path):
    root = as_parquet(sources, tmp_path / "set")
    (root / "data" / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(UserError, match=r"set/data/train-00001-of-00003\.parquet is missing"):
        open_parquet(root)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"picture": IMAGES, "label": [0] * 5}, "data pack reads columns image (bytes, path) and label"),
        ({"image": [b"x"] * 5, "label": [0] * 5}, "has image (binary), label (int64); data pack reads columns image"),
        ({"image": IMAGES, "label": ["a"] * 5}, "label (string); data pack reads columns image"),
        ({"image": IMAGES, "label": [0, None, 0, 0, 0]}, "has images without a label"),
        ({"image": IMAGES[:0], "label": pa.array([], pa.int64())}, "data pack reads columns image"),
    ],
)
def test_other_columns_are_refused(tmp_path, columns, sentence):
    with pytest.raises(UserError) as refused:
        open_parquet(written(tmp_path / "set", columns))
    assert str(refused.value).startswith(f"{tmp_path}/set/train-00000-of-00001.parquet ")
    assert sentence in str(refused.value)


def test_classes_that_contradict_the_labels(sources, tmp_path):
    root = as_parquet(sources, tmp_path / "set", files=1)
    path = root / "data" / "train-00000-of-00001.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(1, "label", pa.array([2] * len(table))), path)
    with pytest.raises(UserError, match="holds label 2 and names 2 classes"):
        open_parquet(root)


def test_a_file_that_is_no_parquet(tmp_path):
    (tmp_path / "train-00000-of-00001.parquet").write_bytes(b"PAR1 no more")
    assert is_parquet(tmp_path)
    with pytest.raises(UserError, match=r"train-00000-of-00001\.parquet cannot be read as parquet: "):
        open_parquet(tmp_path)


def test_images_that_are_not_in_the_file(tmp_path):
    images = [*IMAGES[:1], {"bytes": None, "path": "a.jpg"}, None]
    train = open_parquet(written(tmp_path / "set", {"image": images, "label": [0] * 3}))["train"]
    assert train.read(0) == b"0"
    for index in (1, 2):
        with pytest.raises(OSError, match=r"the column image\.bytes is empty here"):
            train.read(index)


def test_without_pyarrow_it_says_what_to_install(sources, tmp_path, monkeypatch):
    root = as_parquet(sources, tmp_path / "set")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        UserError, match=r"parquet, .arrow and .zst files need pyarrow: pip install 'largebatch\[parquet\]'"
    ):
        open_parquet(root)
