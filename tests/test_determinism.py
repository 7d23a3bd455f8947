"""The deterministic mode: on inside, off after, and the same bits at every run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from beside import beside
from programs import torchrun, weights_at_end
from torch import Tensor, nn

from largebatch import models
from largebatch.errors import UserError
from largebatch.machine.determinism import WORKSPACE, deterministic
from largebatch.recipes import config
from largebatch.run.train import train
from largebatch.studies.bench.throughput import measure as throughput

CPU = torch.device("cpu")


def switches() -> tuple[object, ...]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        os.environ.get(WORKSPACE),
    )


def same_weights(*directories: Path) -> bool:
    """Bit by bit."""
    one, other = map(weights_at_end, directories)
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    monkeypatch.delenv(WORKSPACE, raising=False)


def test_on_inside_and_off_after(monkeypatch):
    before = switches()
    with deterministic(False):
        assert switches() == (*before[:3], True, *before[4:]), "cuDNN keeps the fastest of its kernels"
    assert switches() == before
    with deterministic(True):
        assert switches() == (True, False, True, False, *before[4:-1], ":4096:8"), "numbers keep their formats"
    assert switches() == before
    with pytest.raises(KeyError), deterministic(True):
        raise KeyError
    assert switches() == before
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setenv(WORKSPACE, ":16:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        own = switches()
        with deterministic(True):
            assert switches() == (True, False, True, False, *before[4:-1], ":16:8")
        assert switches() == own
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_workspace_that_varies_is_refused(monkeypatch):
    monkeypatch.setenv(WORKSPACE, ":0:0")
    before = switches()
    with (
        pytest.raises(
            UserError, match=r"CUBLAS_WORKSPACE_CONFIG = :0:0 does not go with deterministic = true; valid: "
        ),
        deterministic(True),
    ):
        pass
    assert switches() == before


def test_an_operation_without_a_deterministic_form_is_named():
    with (
        pytest.raises(
            UserError, match=r"deterministic = true cannot be kept: put_ has no .*; set deterministic = false"
        ),
        deterministic(True),
    ):
        torch.zeros(4).put_(torch.tensor([0]), torch.ones(1))
    with pytest.raises(RuntimeError, match="shape") as error, deterministic(True):
        torch.zeros(2) @ torch.zeros(3, 3)
    assert not isinstance(error.value, UserError)


class Unpooled(nn.Module):
    """Pools and unpools, which torch cannot do deterministically."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        pooled, places = F.max_pool2d(images, 2, return_indices=True)
        return self.last(F.max_unpool2d(pooled, places, 2).flatten(1))


@pytest.mark.worlds
def test_a_run_that_cannot_keep_it_says_so(recipe, monkeypatch):
    monkeypatch.setattr(models, "build", lambda *_: Unpooled())
    path, before = recipe(steps=2, epochs=None), switches()
    assert train(config.load(path), quiet=True).status == "finished"
    keys = ["deterministic=true", f"record.dir={path.parent / 'other'}"]
    with pytest.raises(UserError, match="cannot be kept: max_unpooling2d_forward_out has no deterministic form"):
        train(config.load(path, keys), quiet=True)
    assert switches() == before


VARYING = {
    "model": {"name": "tiny_cnn", "channels": [4, 8], "dropout": 0.3},
    "data": {"name": "digits", "augment": "crop_flip"},
    "batch": {"global_batch_size": 100, "micro_batch_size": 25},
    "deterministic": True,
}


@pytest.mark.worlds
@pytest.mark.parametrize("world", [1, 2])
def test_the_same_seed_and_world_give_the_same_bits(recipe, tmp_path: Path, world: int):
    """And another seed others: dropout and augmentation are drawn."""
    path = recipe(**VARYING)
    for name in ("one", "other"):
        ended = torchrun(world, "-m", "largebatch", "train", path, f"record.dir={tmp_path / name}")
        assert ended.returncode == 0, ended.stderr
    assert same_weights(tmp_path / "one", tmp_path / "other")
    if world == 1:
        train(config.load(path, ["seed=1"]), quiet=True)
        assert not same_weights(tmp_path / "one", config.load(path).directory)


@pytest.mark.worlds
def test_the_trainer_beside_its_deterministic_self(recipe):
    modes = []

    def note(job, step):
        if step.number == 0:
            modes.append((job.run.deterministic, torch.are_deterministic_algorithms_enabled()))

    with beside(before=note):
        facts = throughput.measure(config.load(recipe()), 2, 2, "", beside=["deterministic=true"])
    assert len(facts["trainer_over_beside"]) == 2
    assert sorted(modes) == [(False, False)] * 3 + [(True, True)] * 3


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_same_bits_on_a_device(recipe, tmp_path: Path, precision: str):
    path = recipe(**VARYING, precision=precision, device="cuda")
    for name in ("one", "other"):
        train(config.load(path, [f"record.dir={tmp_path / name}"]), quiet=True)
    assert same_weights(tmp_path / "one", tmp_path / "other")
