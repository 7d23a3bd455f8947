"""Training images that cannot be read: which stands in, how they are counted, when it is too much."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import torchrun

from largebatch.data import Splits, build
from largebatch.data.folder import Files
from largebatch.data.statistics import IMAGENET
from largebatch.data.unreadable import Unreadable
from largebatch.data.workers import WorkerSplit
from largebatch.errors import LocalError, Lost, UserError
from tests.data.conftest import CPU
from tests.data.test_workers import build_folder, collected, files_of, plan_of, same, training_pixels, wait_until_gone


@pytest.fixture
def broken_root(image_root: Path) -> Path:
    """Five of 25 training images are broken, each in its way; two of them stand in a row, one is the last."""
    train = image_root / "train"
    (train / "cat" / "03.png").write_bytes(b"")
    whole = (train / "cat" / "04.JPEG").read_bytes()
    (train / "cat" / "04.JPEG").write_bytes(whole[: len(whole) // 2])
    (train / "dog" / "00.JPEG").write_text("not an image")
    (train / "dog" / "05.png").unlink()
    (train / "dog" / "05.png").symlink_to("nowhere")
    (train / "dog" / "11.png").write_bytes(b"\x89PNG")
    return image_root


BROKEN = ["cat/03.png", "cat/04.JPEG", "dog/00.JPEG", "dog/05.png", "dog/11.png"]


def unreadable_of(dataset: Splits) -> Unreadable:
    assert isinstance(dataset.train, WorkerSplit)
    assert dataset.train.unreadable is not None
    return dataset.train.unreadable


def names_of(dataset: Splits) -> list[str]:
    """Those met, as class/file."""
    return sorted("/".join(Path(file).parts[-2:]) for file in unreadable_of(dataset).met)


def test_the_next_readable_one_stands_in_with_the_label_it_has_and_the_others_augmentation(broken_root: Path):
    dataset = build_folder(broken_root, unreadable_share=0.2)
    plan, paths = plan_of(dataset), files_of(dataset)
    broken = {index for index, path in enumerate(paths) if path.endswith(tuple(BROKEN))}
    assert len(broken) == 5
    replaced = 0
    for step, (images, labels) in enumerate(collected(dataset, plan)):
        positions, _, indices = plan.examples_of(step, 0)
        for row, (position, index) in enumerate(zip(positions, indices, strict=True)):
            stands = int(index)
            while stands in broken:
                stands = (stands + 1) % len(paths)
            replaced += stands != index
            expected = (training_pixels(paths[stands], int(position)) / 255 - IMAGENET.mean) / IMAGENET.std
            np.testing.assert_allclose(images[row].permute(1, 2, 0).numpy(), expected, rtol=0, atol=1e-12)
            assert labels[row] == int(stands >= 13)
    assert replaced >= 5, "32 of the 25 images were trained on"
    assert names_of(dataset) == BROKEN


@pytest.mark.worlds
def test_the_same_stands_in_in_any_world_with_any_workers_from_any_step_on(broken_root: Path):
    alone = build_folder(broken_root, unreadable_share=0.2)
    whole = collected(alone, plan_of(alone, micro=8))
    other = build_folder(broken_root, unreadable_share=0.2)
    assert same(whole, collected(other, plan_of(other, world=4, micro=1)))
    assert same(whole[2:], collected(other, plan_of(other, micro=4), first=2))
    with_workers = build_folder(broken_root, unreadable_share=0.2, workers=2)
    assert same(whole, collected(with_workers, plan_of(other, micro=2)))
    wait_until_gone()
    assert unreadable_of(alone).met == unreadable_of(other).met == unreadable_of(with_workers).met
    assert names_of(alone) == BROKEN
    assert unreadable_of(alone).share == 5 / 25
    reasons = {Path(file).name: reason for file, reason in unreadable_of(with_workers).met.items()}
    assert reasons["05.png"] == "No such file or directory"
    assert "truncated" in reasons["04.JPEG"]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.worlds)])
def test_a_file_that_became_a_folder(image_root: Path, workers: int):
    """One that was a folder from the start is looked into, not read."""
    (image_root / "train" / "cat" / "x.jpg").mkdir()
    shutil.copy(image_root / "train" / "cat" / "00.JPEG", image_root / "train" / "cat" / "x.jpg" / "inside.jpg")
    dataset = build_folder(image_root, unreadable_share=0.05, workers=workers)
    assert len(dataset.train) == 26
    (image_root / "train" / "dog" / "02.JPEG").unlink()
    (image_root / "train" / "dog" / "02.JPEG").mkdir()
    assert len(collected(dataset, plan_of(dataset))) == 4
    wait_until_gone()
    assert unreadable_of(dataset).met == {str(image_root / "train" / "dog" / "02.JPEG"): "Is a directory"}


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.worlds)])
def test_one_too_many_ends_the_run_and_is_named(broken_root: Path, workers: int):
    dataset = build_folder(broken_root, unreadable_share=0.19, workers=workers)
    sentence = (
        r"train/\S+ cannot be read as an image: .*; that makes 5 of 25 training images, 20 %, and "
        r"data.unreadable_share = 0.19 allows 4$"
    )
    with pytest.raises(LocalError, match=sentence) as error:
        collected(dataset, plan_of(dataset, micro=1))
    last = list(unreadable_of(dataset).met)[-1]
    assert str(error.value).startswith(last)
    wait_until_gone()


def test_by_default_the_first_ends_it(broken_root: Path):
    dataset = build_folder(broken_root)
    with pytest.raises(LocalError, match=r"cannot be read as an image: .*; data.unreadable_share = 0 allows none"):
        collected(dataset, plan_of(dataset))
    assert len(unreadable_of(dataset).met) == 1


def test_a_folder_without_a_readable_image_ends_soon(image_root: Path):
    for path in image_root.glob("train/*/*"):
        path.write_bytes(b"")
    dataset = build_folder(image_root, unreadable_share=0.9)
    with pytest.raises(LocalError, match="that makes 23 of 25 training images, 92 %, and .* = 0.9 allows 22"):
        collected(dataset, plan_of(dataset))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.worlds)])
def test_a_test_image_is_never_replaced(broken_root: Path, workers: int):
    """The training set, evaluated, is the one that is trained on: every image once, with what stands in."""
    dataset = build_folder(broken_root, unreadable_share=0.9, workers=workers)
    assert sum(len(labels) for _, labels in dataset.train.batches(0, 1, 4, CPU)) == 25
    (broken_root / "val" / "dog" / "01.png").write_bytes(b"")
    with pytest.raises(LocalError, match=r"val/dog/01.png cannot be read as an image: [^;]*$"):
        list(dataset.test.batches(0, 1, 4, CPU))
    wait_until_gone()
    assert names_of(dataset) == BROKEN


def test_a_held_out_image_is_never_replaced(broken_root: Path):
    held = build_folder(broken_root, unreadable_share=0.9, hold_out=20)
    with pytest.raises(LocalError, match="cannot be read as an image"):
        list(held.test.batches(0, 1, 4, CPU))
    assert unreadable_of(held).examples == 5


@pytest.mark.parametrize("reason", [OSError(errno.EMFILE, "Too many open files"), MemoryError("no memory")])
def test_a_failure_of_the_machine_is_not_the_images(image_root: Path, monkeypatch, reason: Exception):
    def fails(files: Files, index: int) -> bytes:
        raise reason

    monkeypatch.setattr(Files, "read", fails)
    dataset = build_folder(image_root, unreadable_share=0.9)
    with pytest.raises(Lost, match="(Too many open files|no memory)$"):
        collected(dataset, plan_of(dataset))
    assert not unreadable_of(dataset).met


def test_ranks_count_together():
    """Rank 0 of three: files that two met count once, and are new once."""
    own = Unreadable(10, 0.3)
    own.add({"a": "empty"})
    others = [{"b": "cut", "a": "empty"}, {}]
    assert own.join([own.take_fresh(), *others]) == {"a": "empty", "b": "cut"}
    assert own.take_fresh() == {}
    own.add({"b": "cut", "a": "empty"})
    assert own.join([own.take_fresh(), {"b": "cut"}, {}]) == {}, "rank 1's came before it knew"
    assert own.share == 0.2
    with pytest.raises(UserError, match="^d cannot be read as an image: cut; that makes 4 of 10 .*, 40 %") as error:
        own.join([{}, {"c": "cut"}, {"d": "cut"}])
    assert not isinstance(error.value, LocalError), "every rank knows: rank zero tells it"
    assert Unreadable(100, 0.29).at_most == 29


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_shares_that_are_none(image_root: Path, share: float):
    with pytest.raises(UserError, match=r"data.unreadable_share = .* is out of range; at least 0 and below 1"):
        build_folder(image_root, unreadable_share=share)


def test_only_folders_have_files_to_miss():
    with pytest.raises(UserError, match="data.unreadable_share is for folder and imagenet only; data set digits"):
        build("digits", unreadable_share=0.1)


def test_with_nothing_broken_nothing_changes(image_root: Path):
    strict, lenient = build_folder(image_root), build_folder(image_root, unreadable_share=0.5)
    assert same(collected(strict, plan_of(strict)), collected(lenient, plan_of(lenient)))
    assert not unreadable_of(lenient).met
    assert all(isinstance(labels, torch.Tensor) for _, labels in lenient.test.batches(0, 1, 4, CPU))


def recipe_of(root: Path, place: Path, **data: object) -> Path:
    written = {
        "model": {"name": "tiny_cnn", "channels": [4]},
        "data": {"name": "folder", "root": str(root), "image_size": 16, "workers": 0, **data},
        "batch": {"global_batch_size": 8}, "steps": 8, "optimizer": {"name": "sgd"}, "lr": {"base": 0.01},
        "evaluate": {"train": True}, "record": {"to": [], "every_steps": 2, "dir": str(place / "run")},
    }  # fmt: skip
    (place / "small.yaml").write_text(json.dumps(written))
    return place / "small.yaml"


@pytest.mark.worlds
def test_a_run_tells_each_file_once_whichever_ranks_met_it(broken_root: Path, tmp_path: Path):
    """64 examples of 25 images: in the third epoch every file has been met before, often by the other rank."""
    path = recipe_of(broken_root, tmp_path, unreadable_share=0.2)
    ended = torchrun(2, "-m", "largebatch", "train", path)
    assert ended.returncode == 0, ended.stderr
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    events = [line for line in lines if line["event"] == "unreadable"]
    files = [file for line in events for file in line["files"]]
    assert sorted("/".join(Path(file).parts[-2:]) for file in files) == BROKEN
    assert [line["count"] for line in events] == list(np.cumsum([len(line["files"]) for line in events]))
    assert events[-1]["share"] == 0.2
    log = (tmp_path / "run" / "train.log").read_text()
    for file in files:
        assert log.count(file) == ended.stdout.count(file) == 1
    assert "04.JPEG cannot be read as an image (image file is truncated" in log


@pytest.mark.worlds
def test_a_run_ends_when_all_ranks_together_met_too_many(broken_root: Path, tmp_path: Path):
    path = recipe_of(broken_root, tmp_path, unreadable_share=0.19)
    ended = torchrun(2, "-m", "largebatch", "train", path)
    assert ended.returncode
    assert "that makes 5 of 25 training images, 20 %, and data.unreadable_share = 0.19 allows 4" in ended.stderr
    assert "in __getitem__" not in ended.stderr
