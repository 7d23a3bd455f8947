"""DALI's CPU pipeline beside Pillow; skipped where DALI is not installed."""

from __future__ import annotations

import builtins
import functools
from pathlib import Path

import numpy as np
import pytest
import torch

from largebatch.data import Placement, dali
from largebatch.data.dali import DaliSplit
from largebatch.data.decode import evaluation_window
from largebatch.data.sizes import Sizes
from largebatch.data.unreadable import Unreadable
from largebatch.errors import LocalError, UserError
from tests.data.conftest import CPU
from tests.data.test_nvjpeg import LEVELS, assert_close, broken, only_a_header, pillow, plan_of, write_photographs
from tests.data.test_workers import read, same, split_of, wait_until_gone


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    return write_photographs(tmp_path / "images")


@pytest.fixture
def installed() -> None:
    pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")


needs_dali = pytest.mark.usefixtures("installed")


def of_dali(root: Path, **given: object) -> DaliSplit:
    return split_of(root, DaliSplit, "dali", **given)


def close_in_the_mean(found: list[tuple], expected: list[tuple], levels: float) -> None:
    for (images, labels), (others, same_labels) in zip(found, expected, strict=True):
        assert labels.equal(same_labels)
        assert ((images - others).abs() * LEVELS).mean((1, 2, 3)).max() < levels


@needs_dali
@pytest.mark.parametrize("augment", ["none", "flip", "resized_crop_flip"])
def test_the_same_examples_windows_and_flips(photographs: Path, augment: str):
    """Whole images agree to the level; at the edges of a region colours are upsampled without what lies outside."""
    found, expected = (make(photographs, augment=augment) for make in (of_dali, pillow))
    close_in_the_mean(read(found, plan_of()), read(expected, plan_of()), 0.6)
    if augment == "none":
        assert_close(read(found, plan_of()), read(expected, plan_of()), levels=2)
    assert_close(list(found.batches(0, 1, 5, CPU)), list(expected.batches(0, 1, 5, CPU)), levels=2)


@needs_dali
def test_sides_colours_and_an_order_of_its_own(photographs: Path):
    given = {
        "sizes": Sizes(16, 32, evaluate=24, multiple_of=8), "color_jitter": 0.4,
        "epoch_order": lambda seed, epoch: np.roll(np.arange(24), seed + epoch),
    }  # fmt: skip
    found, expected = (read(make(photographs, **given), plan_of()) for make in (of_dali, pillow))
    assert len({images.shape for images, _ in found}) > 1
    close_in_the_mean(found, expected, 1.2)


@needs_dali
def test_any_world_any_workers_any_resume_point(photographs: Path):
    whole = read(of_dali(photographs), plan_of(micro=8))
    ranks = [read(of_dali(photographs), plan_of(world=2, micro=1), rank=rank) for rank in range(2)]
    together = [
        tuple(torch.cat([b[part] for rank in ranks for b in rank[4 * step : 4 * step + 4]]) for part in range(2))
        for step in range(6)
    ]
    assert same(whole, together)
    assert same(whole[2:], read(of_dali(photographs), plan_of(micro=8), first=2))
    assert same(read(of_dali(photographs), plan_of()), read(of_dali(photographs, workers=2), plan_of()))
    wait_until_gone()


@needs_dali
def test_batches_may_grow_and_end_early(photographs: Path):
    split = of_dali(photographs)
    ((whole, _),) = split.batches(0, 1, 24, CPU)
    assert torch.equal(whole, torch.cat([images for images, _ in split.batches(0, 1, 7, CPU)]))
    for _ in split.batches(0, 1, 2, CPU):
        break
    decoder = dali._Decoder(1, torch.device("cpu"))
    reader = split._form()
    for count in (2, 5, 3):
        batch = reader(count, 16)
        for row in range(count):
            batch.take(row, split.source.read(6), functools.partial(evaluation_window, size=16))
        decoder.begin(batch.whole(), 16)
    shapes = [found.shape[0] for found in (decoder.finish() for _ in range(3)) if found is not None]
    assert shapes == [2, 5, 3]


@needs_dali
@pytest.mark.parametrize("workers", [0, 2])
def test_broken_files_follow_the_rule_of_unreadable_ones(photographs: Path, workers: int):
    names = broken(photographs)
    mine, theirs = Unreadable(24, 0.2), Unreadable(24, 0.2)
    found = read(of_dali(photographs, workers=workers, unreadable=mine), plan_of())
    close_in_the_mean(found, read(pillow(photographs, unreadable=theirs), plan_of()), 0.6)
    assert sorted("/".join(Path(file).parts[-2:]) for file in mine.met) == names
    assert mine.met.keys() == theirs.met.keys()
    wait_until_gone()


@needs_dali
def test_a_body_that_dali_refuses_is_named(photographs: Path):
    (photographs / "train" / "dog" / "06.JPEG").write_bytes(only_a_header(photographs))
    with pytest.raises(LocalError, match="dog/06.JPEG cannot be read as an image: .*data.unreadable_share = 0 allows"):
        read(of_dali(photographs, unreadable=Unreadable(24, 0)), plan_of())


def test_where_dali_is_not_installed(photographs: Path, monkeypatch: pytest.MonkeyPatch):
    original = builtins.__import__

    def without(name: str, *given: object, **named: object) -> object:
        if name.startswith("nvidia.dali"):
            raise ModuleNotFoundError(name)
        return original(name, *given, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"^data.decode = dali needs NVIDIA DALI, .* pip install 'largebatch\[dali\]'"):
        of_dali(photographs)


@needs_dali
@pytest.mark.gpu
def test_on_cuda(photographs: Path):
    there = Placement(torch.device("cuda"), torch.float64)
    found = [batch for step in of_dali(photographs).steps(plan_of(), 0, 0, there, 5) for batch in step]
    assert all(images.is_cuda and labels.is_cuda for images, labels in found)
    found = [(images.cpu(), labels.cpu()) for images, labels in found]
    close_in_the_mean(found, read(pillow(photographs), plan_of()), 6)
